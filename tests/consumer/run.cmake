# Installs Tessera, moves the installed tree, and builds and runs programs against it: through
# find_package and through pkg-config. Without `library_build` a static library is built first.
#   cmake -D source=… -D work=… -D generator=… -D c_compiler=… -D cxx_compiler=… -D version=…
#         [-D launcher=…] [-D library_build=… | -D build_type=… -D werror=…
#         -D cuda=… -D chip=… -D check_spills=…] -P run.cmake
cmake_minimum_required(VERSION 3.22)

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${result} from: ${command}")
  endif()
endfunction()

set(toolchain -G ${generator} -D CMAKE_C_COMPILER=${c_compiler}
    -D CMAKE_CXX_COMPILER=${cxx_compiler} -D CMAKE_C_COMPILER_LAUNCHER=${launcher}
    -D CMAKE_CXX_COMPILER_LAUNCHER=${launcher} -D CMAKE_CUDA_COMPILER_LAUNCHER=${launcher})

if(DEFINED library_build)
  set(static "")
else()
  set(static --static)
  set(library_build ${work}/library)
  run(${CMAKE_COMMAND} -S ${source} -B ${library_build} ${toolchain} -D BUILD_SHARED_LIBS=OFF
      -D CMAKE_BUILD_TYPE=${build_type} -D TESSERA_WERROR=${werror} -D TESSERA_BUILD_CLI=OFF
      -D TESSERA_BUILD_TESTS=OFF -D TESSERA_CUDA=${cuda} -D CMAKE_CUDA_ARCHITECTURES=${chip}
      -D TESSERA_CHECK_SPILLS=${check_spills})
  run(${CMAKE_COMMAND} --build ${library_build} --parallel 2)
endif()

file(REMOVE_RECURSE ${work}/staging ${work}/prefix ${work}/project ${work}/pkgconfig)
run(${CMAKE_COMMAND} --install ${library_build} --prefix ${work}/staging)
file(RENAME ${work}/staging ${work}/prefix)

run(${CMAKE_COMMAND} -S ${source}/tests/consumer -B ${work}/project ${toolchain}
    -D CMAKE_PREFIX_PATH=${work}/prefix -D examples=${source}/examples -D version=${version})
run(${CMAKE_COMMAND} --build ${work}/project)
run(${CMAKE_CTEST_COMMAND} --test-dir ${work}/project --output-on-failure --no-tests=error)

file(GLOB_RECURSE pc_file ${work}/prefix/*/tessera.pc)
cmake_path(GET pc_file PARENT_PATH pc_folder)
set(ENV{PKG_CONFIG_PATH} ${pc_folder})
find_program(pkg_config pkg-config REQUIRED)
execute_process(COMMAND ${pkg_config} ${static} --cflags --libs tessera
  OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${pkg_config} --modversion tessera
  OUTPUT_VARIABLE pc_version OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${pkg_config} --variable=libdir tessera
  OUTPUT_VARIABLE libdir OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT pc_version STREQUAL version)
  message(FATAL_ERROR "tessera.pc: version ${pc_version}, expected ${version}")
endif()
separate_arguments(flags UNIX_COMMAND "${flags}")
file(MAKE_DIRECTORY ${work}/pkgconfig)
set(ENV{LD_LIBRARY_PATH} ${libdir})
run(${c_compiler} -std=c11 ${source}/examples/attention.c ${flags} -o ${work}/pkgconfig/c)
run(${work}/pkgconfig/c)
run(${cxx_compiler} -std=c++20 ${source}/tests/consumer/cpp_api.cpp ${flags}
    -o ${work}/pkgconfig/cpp)
run(${work}/pkgconfig/cpp)
