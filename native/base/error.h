// The native layer's only exception. `code` is one of lib/errors.ts; the addon turns it into that
// typed error at the N-API boundary. Visible, as it crosses from the CUDA backend's shared object.
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
  // The file at fault, where there is one.
  const std::string& file() const noexcept { return file_; }

 private:
  std::string code_;
  std::string file_;
};

}  // namespace uniproc
