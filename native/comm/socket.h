// TCP sockets as the ranks use them: closed with the object that holds them, never blocking, and
// not inherited by child processes, where they would hide this process's death from its peers.
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

// Both ends of a pipe: what is read from, and what is written to. Throws Error COMMUNICATOR_FAILED.
std::pair<FileDescriptor, FileDescriptor> openPipe();

// "what: why", the latter the system's description of an error number.
std::string describeError(const char* what, int error);

class Socket {
 public:
  Socket() = default;

  // Listens on a free port of all of the host's addresses. Throws Error COMMUNICATOR_FAILED.
  static Socket listen();
  uint16_t port() const;
  // Empty when nobody waits. Throws Error COMMUNICATOR_FAILED when none can be accepted any more.
  Socket accept() const;

  // Empty when the host cannot be reached from here. The connection is made, or refused, once the
  // socket can be written to.
  static Socket connect(const in6_addr& host, uint16_t port);
  bool isConnected() const;

  // What was moved of these bytes, as much as could be at once; none when the socket is not ready.
  struct Moved {
    size_t bytes = 0;
    int error = 0;       // an error number: the connection is broken
    bool ended = false;  // the peer sends no more
  };
  Moved send(const iovec* parts, int numParts) const;
  Moved receive(const iovec* parts, int numParts) const;

  // The peer finds, after what was sent, that no more comes. Nothing happens on a broken
  // connection.
  void endSending() const noexcept;

  int fd() const { return fd_.get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }

 private:
  explicit Socket(FileDescriptor fd) : fd_(std::move(fd)) {}
  static Socket open(int family);
  void setOptions() const;

  FileDescriptor fd_;
};

// This host's addresses, the loopback one first, IPv4 as IPv6 has it (::ffff:a.b.c.d). Link-local
// IPv6 is left out: it means something on one host only.
std::vector<in6_addr> hostAddresses();

}  // namespace uniproc
