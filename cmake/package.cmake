# What leaves the build tree: exported symbols, headers, library, CMake package, pkg-config file.
include(CMakePackageConfigHelpers)

if(BUILD_SHARED_LIBS AND UNIX AND NOT APPLE)
  set(exports_map ${CMAKE_CURRENT_LIST_DIR}/exports.map)
  target_link_options(tessera PRIVATE LINKER:--version-script=${exports_map})
  set_property(TARGET tessera APPEND PROPERTY LINK_DEPENDS ${exports_map})
  if(NOT TESSERA_SANITIZE) # a sanitizer's runtime comes with the program
    target_link_options(tessera PRIVATE LINKER:-z,defs)
  endif()
endif()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Tessera)
set(generated_dir ${PROJECT_BINARY_DIR}/package)

install(TARGETS tessera EXPORT TesseraTargets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/tessera DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(EXPORT TesseraTargets NAMESPACE Tessera:: DESTINATION ${package_dir})

# A static libtessera leaves the CUDA runtime to its consumers to link.
set(TESSERA_NEEDS_CUDA OFF)
get_target_property(libraries tessera LINK_LIBRARIES)
if(NOT BUILD_SHARED_LIBS AND libraries MATCHES CUDA::)
  set(TESSERA_NEEDS_CUDA ON)
  find_package(CUDAToolkit REQUIRED)
  set(pc_cuda "-L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt")
endif()
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/TesseraConfig.cmake.in
  ${generated_dir}/TesseraConfig.cmake INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor version may break both API and ABI; the SOVERSION says the same.
write_basic_package_version_file(${generated_dir}/TesseraConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${generated_dir}/TesseraConfig.cmake ${generated_dir}/TesseraConfigVersion.cmake
        DESTINATION ${package_dir})

# Relative to the .pc file, so that the tree works wherever `cmake --install --prefix` puts it.
set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
if(IS_ABSOLUTE ${CMAKE_INSTALL_LIBDIR})
  set(pc_prefix ${CMAKE_INSTALL_PREFIX})
else()
  file(RELATIVE_PATH up /${pkgconfig_dir} /)
  string(REGEX REPLACE "/$" "" up ${up})
  set(pc_prefix "\${pcfiledir}/${up}")
endif()
foreach(kind LIB INCLUDE)
  string(TOLOWER ${kind} name)
  if(IS_ABSOLUTE ${CMAKE_INSTALL_${kind}DIR})
    set(pc_${name}dir ${CMAKE_INSTALL_${kind}DIR})
  else()
    set(pc_${name}dir "\${prefix}/${CMAKE_INSTALL_${kind}DIR}")
  endif()
endforeach()
configure_file(${CMAKE_CURRENT_LIST_DIR}/tessera.pc.in ${generated_dir}/tessera.pc @ONLY)
install(FILES ${generated_dir}/tessera.pc DESTINATION ${pkgconfig_dir})
