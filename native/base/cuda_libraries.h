// Finds NVIDIA's shared libraries where users have them: the loader's search path, a CUDA toolkit,
// the packages of the active Python environment, and the folder in UNIPROC_CUBLAS_DIR.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace uniproc {

struct CudaLibrary {
  void* handle = nullptr;  // never closed; null: not found
  std::string file;        // the loaded file's path
  std::string problem;     // the loader's reason for each file that cannot be used; empty: no file
};

// Folders that may have libraries of CUDA, in the order of search. `named`: those of
// UNIPROC_CUBLAS_DIR alone, which come before the loader's search path; otherwise all others, which
// come after it. Reads directories and the environment, and starts no process.
std::vector<std::string> cudaLibraryFolders(bool named);

// Files named '<stem>.<digits>' in those folders; stem: for example 'libcublasLt.so'.
std::vector<std::string> cudaLibraryFiles(const std::string& stem, bool named);

// Loads the first usable library of a file name, for example 'libcublasLt.so.13'. It must have
// `function`, and `reject`, called when it is loaded, must return no reason against it.
CudaLibrary loadCudaLibrary(const std::string& name, const char* function,
                            const std::function<std::string()>& reject = nullptr);

// Loads NCCL: the file in UNIPROC_NCCL_LIBRARY, else libnccl.so.2.
CudaLibrary loadNccl();

// The places that were searched, for messages.
std::string cudaLibraryPlaces();

// The path of a program in PATH; empty: none.
std::string findProgram(const std::string& name);

// The command that installs a package where these libraries are found. pip refuses to where
// EXTERNALLY-MANAGED lies beside python3's library (PEP 668), as on Debian, unless it is told to.
std::string pipInstall(const std::string& package);

// The path of nvcc in a CUDA toolkit; empty: none.
std::string findNvcc();

// The file that a function of a loaded library comes from.
std::string fileOfFunction(const void* function);

// The loader's reason for the last failure on this thread.
std::string loaderError();

}  // namespace uniproc
