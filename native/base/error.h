// The only exception type of the native layer. `code` is a code of lib/errors.ts; the addon
// converts the exception to that typed error at the N-API boundary. Default visibility, because the
// CUDA backend's shared object throws it across the library boundary.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace uniproc {

class __attribute__((visibility("default"))) Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string& message, std::string file = {})
      : std::runtime_error(message), code_(std::move(code)), file_(std::move(file)) {}

  const std::string& code() const noexcept { return code_; }
  // The file that caused the error, or empty.
  const std::string& file() const noexcept { return file_; }

 private:
  std::string code_;
  std::string file_;
};

}  // namespace uniproc
