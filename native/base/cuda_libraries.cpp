#include "base/cuda_libraries.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <sstream>
#include <string_view>
#include <system_error>

namespace uniproc {
namespace {

namespace fs = std::filesystem;

// The variable's value; empty if it is not set.
std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::vector<std::string> splitPath(const std::string& path) {
  std::vector<std::string> folders;
  std::istringstream rest(path);
  for (std::string folder; std::getline(rest, folder, ':');) {
    if (!folder.empty()) folders.push_back(folder);
  }
  return folders;
}

// The entries of a folder with this prefix, the last in alphabetical order (the newest version)
// first. An unreadable folder has none.
std::vector<fs::path> entries(const fs::path& folder, std::string_view prefix) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().filename().string().starts_with(prefix)) found.push_back(entry->path());
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  return found;
}

class Folders {
 public:
  // Adds each existing folder once.
  void add(const fs::path& folder) {
    std::error_code error;
    if (!fs::is_directory(folder, error)) return;
    const std::string text = folder.string();
    if (std::find(list_.begin(), list_.end(), text) == list_.end()) list_.push_back(text);
  }

  void addToolkit(const fs::path& root) {
    if (root.empty()) return;
    add(root / "lib64");
    add(root / "lib");
    for (const fs::path& target : entries(root / "targets", "")) add(target / "lib");
  }

  // Wheels have nvidia/cu13/lib since CUDA 13, nvidia/cublas/lib and nvidia/nccl/lib otherwise.
  void addPackages(const fs::path& sitePackages) {
    for (const fs::path& package : entries(sitePackages / "nvidia", "")) add(package / "lib");
  }

  // A Python installation or environment. Debian's python3 has dist-packages, and keeps those that
  // pip installs below local/.
  void addPython(const fs::path& prefix) {
    if (prefix.empty()) return;
    for (const char* lib : {"lib", "lib64", "local/lib"}) {
      for (const fs::path& version : entries(prefix / lib, "python3")) {
        addPackages(version / "site-packages");
        addPackages(version / "dist-packages");
      }
    }
  }

  std::vector<std::string> take() { return std::move(list_); }

 private:
  std::vector<std::string> list_;
};

// The prefix of a program '<prefix>/bin/<name>'; empty: none.
fs::path prefixOf(const fs::path& program) {
  return program.empty() ? program : program.parent_path().parent_path();
}

fs::path resolved(const fs::path& file) {
  std::error_code error;
  const fs::path target = fs::canonical(file, error);
  return error ? file : target;
}

std::vector<fs::path> toolkits() {
  std::vector<fs::path> roots = {variable("CUDA_HOME"), variable("CUDA_PATH"),
                                 prefixOf(resolved(findProgram("nvcc"))), "/usr/local/cuda"};
  for (const fs::path& root : entries("/usr/local", "cuda-")) roots.push_back(root);
  roots.push_back("/opt/cuda");
  return roots;
}

// A program with a prefix of its own, as python3 in an environment, has its packages there; a link
// to another installation's has them there.
void addPythons(Folders& folders) {
  for (const char* environment : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    folders.addPython(variable(environment));
    folders.addToolkit(variable(environment));
  }
  for (const std::string& folder : splitPath(variable("PYTHONPATH"))) folders.addPackages(folder);
  const fs::path python = findProgram("python3");
  folders.addPython(prefixOf(python));
  const std::string base = variable("PYTHONUSERBASE");
  const std::string home = variable("HOME");
  folders.addPython(base.empty() && !home.empty() ? fs::path(home) / ".local" : fs::path(base));
  if (!python.empty()) folders.addPython(prefixOf(resolved(python)));
}

using Reject = std::function<std::string()>;

// `name` is a path, or a file name that the loader searches for.
bool load(CudaLibrary& library, const std::string& name, const char* function,
          const Reject& reject = nullptr) {
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  std::string problem;
  if (!handle) {
    problem = loaderError();
  } else if (const void* address = dlsym(handle, function)) {
    const std::string file = fileOfFunction(address);
    problem = reject ? reject() : "";
    if (problem.empty()) {
      library = {handle, file, ""};
      return true;
    }
    problem = "with " + file + ": " + problem;
  } else {
    problem = name + " has no function " + function;
  }
  if (handle) dlclose(handle);
  if (!library.problem.empty()) library.problem += "; ";
  library.problem += problem;
  return false;
}

bool isFile(const std::string& file) {
  std::error_code error;
  return fs::exists(file, error);
}

}  // namespace

std::string loaderError() {
  const char* reason = dlerror();
  return reason ? reason : "the loader gives no reason";
}

std::string fileOfFunction(const void* function) {
  Dl_info info = {};
  return dladdr(function, &info) != 0 ? info.dli_fname : "";
}

std::string findProgram(const std::string& name) {
  for (const std::string& folder : splitPath(variable("PATH"))) {
    const std::string file = folder + "/" + name;
    std::error_code error;
    if (fs::is_regular_file(file, error) && access(file.c_str(), X_OK) == 0) return file;
  }
  return "";
}

std::string pipInstall(const std::string& package) {
  const std::string python = findProgram("python3");
  if (python.empty()) return "pip install " + package;
  bool isManaged = false;
  for (const fs::path& version : entries(prefixOf(python) / "lib", "python3")) {
    isManaged = isManaged || isFile(version / "EXTERNALLY-MANAGED");
  }
  return (isManaged ? "pip install --user --break-system-packages " : "pip install ") + package;
}

std::string findNvcc() {
  for (const fs::path& root : toolkits()) {
    const std::string file = root / "bin" / "nvcc";
    if (!root.empty() && access(file.c_str(), X_OK) == 0) return file;
  }
  return "";
}

std::vector<std::string> cudaLibraryFolders(bool named) {
  Folders folders;
  if (named) {
    const std::string folder = variable("UNIPROC_CUBLAS_DIR");
    if (folder.empty()) return {};
    folders.add(folder);
    folders.addToolkit(folder);
    folders.addPackages(folder);
    return folders.take();
  }
  for (const fs::path& root : toolkits()) folders.addToolkit(root);
  addPythons(folders);
  return folders.take();
}

std::vector<std::string> cudaLibraryFiles(const std::string& stem, bool named) {
  std::vector<std::string> files;
  for (const std::string& folder : cudaLibraryFolders(named)) {
    for (const fs::path& entry : entries(folder, stem + ".")) {
      const std::string version = entry.filename().string().substr(stem.size() + 1);
      if (version.find_first_not_of("0123456789") == std::string::npos) files.push_back(entry);
    }
  }
  return files;
}

std::string cudaLibraryPlaces() {
  const std::string named = variable("UNIPROC_CUBLAS_DIR");
  return "the loader's search path, a CUDA toolkit (CUDA_HOME, CUDA_PATH, /usr/local/cuda*, "
         "/opt/cuda), the active Python environment or UNIPROC_CUBLAS_DIR (" +
         (named.empty() ? "not set" : "'" + named + "'") + ")";
}

CudaLibrary loadCudaLibrary(const std::string& name, const char* function, const Reject& reject) {
  CudaLibrary library;
  const auto loadFrom = [&](bool named) {
    for (const std::string& folder : cudaLibraryFolders(named)) {
      const std::string file = folder + "/" + name;
      if (isFile(file) && load(library, file, function, reject)) return true;
    }
    return false;
  };
  if (loadFrom(true)) return library;
  const std::string before = library.problem;
  if (load(library, name, function, reject)) return library;
  // Only a file that cannot be used is a problem, not that the loader's path has none.
  if (library.problem.find(name + ": cannot open shared object file") != std::string::npos) {
    library.problem = before;
  }
  static_cast<void>(loadFrom(false));
  return library;
}

CudaLibrary loadNccl() {
  const std::string named = variable("UNIPROC_NCCL_LIBRARY");
  constexpr const char* kFunction = "ncclGetVersion";
  if (named.empty()) return loadCudaLibrary("libnccl.so.2", kFunction);
  CudaLibrary library;
  load(library, named, kFunction);
  return library;
}

}  // namespace uniproc
