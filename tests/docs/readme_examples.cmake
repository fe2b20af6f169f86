# Fails unless README.md shows the examples exactly as they are compiled.
#   cmake -D source=… -P readme_examples.cmake
cmake_minimum_required(VERSION 3.22)

file(READ ${source}/README.md readme)
foreach(language cpp c)
  file(READ ${source}/examples/attention.${language} example)
  string(FIND "${readme}" "```${language}\n${example}```\n" at)
  if(at EQUAL -1)
    message(SEND_ERROR "README.md: its ${language} block, expected the text of "
                       "examples/attention.${language}")
  endif()
endforeach()
