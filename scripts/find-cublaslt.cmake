# Finds cuBLASLt for the build where native/base/cuda_libraries.cpp looks for it at run time.
# In: `cuda_major`, the version that it must have; `UNIPROC_CUBLAS_DIR`; `toolkit`, the folder of
# nvcc's toolkit; `toolkits`, folders of others.
# Out: `CUBLASLT_LIBRARY` and `CUBLASLT_INCLUDE`, unset or ending in NOTFOUND if there is none;
# `cublas_roots`, folders with lib and include, in the order of search.

set(prefixes "$ENV{VIRTUAL_ENV}" "$ENV{CONDA_PREFIX}")
find_program(PYTHON3 python3 NO_CACHE)
if(PYTHON3)
  # The environment or installation of this name, and the one that it links to.
  get_filename_component(prefix "${PYTHON3}/../.." ABSOLUTE)
  get_filename_component(python "${PYTHON3}" REALPATH)
  get_filename_component(base "${python}/../.." ABSOLUTE)
  list(APPEND prefixes "${prefix}" "$ENV{PYTHONUSERBASE}" "$ENV{HOME}/.local" "${base}")
endif()
string(REPLACE ":" ";" site_packages "$ENV{PYTHONPATH}")
foreach(prefix IN LISTS prefixes)
  if(prefix)
    file(GLOB found "${prefix}/lib/python3*/*-packages" "${prefix}/lib64/python3*/*-packages"
      "${prefix}/local/lib/python3*/*-packages")
    list(APPEND site_packages ${found})
  endif()
endforeach()
file(GLOB packages "${UNIPROC_CUBLAS_DIR}/nvidia/*")
set(cublas_roots "${UNIPROC_CUBLAS_DIR}" ${packages} "${toolkit}" ${toolkits} "$ENV{CONDA_PREFIX}")
foreach(folder IN LISTS site_packages)
  if(folder)
    file(GLOB packages "${folder}/nvidia/*")
    list(APPEND cublas_roots ${packages})
  endif()
endforeach()
list(REMOVE_ITEM cublas_roots "")

unset(CUBLASLT_LIBRARY CACHE)
find_library(CUBLASLT_LIBRARY libcublasLt.so.${cuda_major} NO_CACHE
  HINTS ${cublas_roots} ENV LD_LIBRARY_PATH
  PATH_SUFFIXES lib64 lib targets/${CMAKE_HOST_SYSTEM_PROCESSOR}-linux/lib)

# The header beside it, if that is of the same version.
unset(CUBLASLT_INCLUDE CACHE)
if(CUBLASLT_LIBRARY)
  get_filename_component(folder "${CUBLASLT_LIBRARY}" DIRECTORY)
  find_path(CUBLASLT_INCLUDE cublasLt.h NO_CACHE
    HINTS "${folder}/../include" "${folder}/../../include" "${folder}" ${cublas_roots}
    PATH_SUFFIXES include)
endif()
if(CUBLASLT_INCLUDE)
  file(STRINGS "${CUBLASLT_INCLUDE}/cublas_api.h" version
    REGEX "#define CUBLAS_VER_MAJOR ${cuda_major}$")
  if(NOT version)
    unset(CUBLASLT_INCLUDE)
  endif()
endif()
