// Non-blocking TCP sockets that close with their owning object. They are not inherited by child
// processes, because a child that holds a socket open would hide this process's death from its
// peers.
#pragma once

#include <netinet/in.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

struct iovec;

namespace uniproc {

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor();
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    FileDescriptor(std::move(other)).swap(*this);
    return *this;
  }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  void swap(FileDescriptor& other) noexcept { std::swap(fd_, other.fd_); }

  int fd_ = -1;
};

// Both ends of a pipe: the read end, the write end. Throws Error COMMUNICATOR_FAILED.
std::pair<FileDescriptor, FileDescriptor> openPipe();

// "what: description", with the system's description of the error number.
std::string describeError(const char* what, int error);

class Socket {
 public:
  Socket() = default;

  // Listens on a free port of all host addresses. Throws Error COMMUNICATOR_FAILED.
  static Socket listen();
  uint16_t port() const;
  // Returns an empty socket if no connection is pending. Throws Error COMMUNICATOR_FAILED.
  Socket accept() const;

  // Returns an empty socket if the host is unreachable. The connection succeeds or fails once the
  // socket becomes writable.
  static Socket connect(const in6_addr& host, uint16_t port);
  bool isConnected() const;

  // The result of one non-blocking transfer; `bytes` is 0 if the socket is not ready.
  struct Moved {
    size_t bytes = 0;
    int error = 0;       // errno of a broken connection, or 0
    bool ended = false;  // the peer closed its sending side
  };
  Moved send(const iovec* parts, int numParts) const;
  Moved receive(const iovec* parts, int numParts) const;

  // Closes the sending side: the peer reads the end of the stream after the data sent so far. Has
  // no effect on a broken connection.
  void endSending() const noexcept;

  int fd() const { return fd_.get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }

 private:
  explicit Socket(FileDescriptor fd) : fd_(std::move(fd)) {}
  static Socket open(int family);
  void setOptions() const;

  FileDescriptor fd_;
};

// This host's addresses, loopback first, with IPv4 mapped into IPv6 (::ffff:a.b.c.d). Excludes
// link-local IPv6 addresses, which have a meaning on one host only.
std::vector<in6_addr> hostAddresses();

}  // namespace uniproc
