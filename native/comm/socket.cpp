#include "comm/socket.h"

#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

#include "base/error.h"

namespace uniproc {
namespace {

[[noreturn]] void throwError(const char* what, int error = errno) {
  throw Error("COMMUNICATOR_FAILED", describeError(what, error));
}

#ifdef MSG_NOSIGNAL
constexpr int kNoSignal = MSG_NOSIGNAL;
#else
constexpr int kNoSignal = 0;  // SO_NOSIGPIPE is set instead
#endif

// For systems that cannot set close-on-exec when they create the descriptor.
[[maybe_unused]] void setCloseOnExec(int fd) {
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  fcntl(fd, F_SETFL, O_NONBLOCK);
}

in6_addr mapped(const in_addr& host) {
  in6_addr address = {};
  address.s6_addr[10] = address.s6_addr[11] = 0xff;
  std::memcpy(address.s6_addr + 12, &host, sizeof host);
  return address;
}

bool wouldBlock(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR || error == EINPROGRESS;
}

Socket::Moved moved(ssize_t result) {
  if (result >= 0) return {static_cast<size_t>(result)};
  return {0, wouldBlock(errno) ? 0 : errno};
}

}  // namespace

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) close(fd_);
}

std::string describeError(const char* what, int error) {
  return std::string(what) + ": " + std::generic_category().message(error);
}

std::pair<FileDescriptor, FileDescriptor> openPipe() {
  int ends[2];
#ifdef __linux__
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) throwError("cannot open a pipe");
#else
  if (pipe(ends) != 0) throwError("cannot open a pipe");
  for (const int end : ends) setCloseOnExec(end);
#endif
  return {FileDescriptor(ends[0]), FileDescriptor(ends[1])};
}

Socket Socket::open(int family) {
#ifdef __linux__
  return Socket(FileDescriptor(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)));
#else
  FileDescriptor fd(socket(family, SOCK_STREAM, 0));
  if (fd) setCloseOnExec(fd.get());
  return Socket(std::move(fd));
#endif
}

void Socket::setOptions() const {
  const int on = 1;
  setsockopt(fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
#ifdef SO_NOSIGPIPE
  setsockopt(fd(), SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
}

Socket Socket::listen() {
  Socket socket = open(AF_INET6);
  if (socket) {
    const int off = 0;
    sockaddr_in6 any = {};
    any.sin6_family = AF_INET6;
    const bool isBound =
        setsockopt(socket.fd(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0 &&
        bind(socket.fd(), reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0;
    if (!isBound) socket = Socket();
  }
  if (!socket) {  // the host has no IPv6
    socket = open(AF_INET);
    if (!socket) throwError("cannot open a socket");
    sockaddr_in any = {};
    any.sin_family = AF_INET;
    if (bind(socket.fd(), reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0) {
      throwError("cannot bind a port to listen on");
    }
  }
  if (::listen(socket.fd(), SOMAXCONN) != 0) throwError("cannot listen on a port");
  return socket;
}

uint16_t Socket::port() const {
  sockaddr_storage address = {};
  socklen_t size = sizeof address;
  if (getsockname(fd(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throwError("cannot read a socket's port");
  }
  // The port is at the same offset for both address families.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

Socket Socket::accept() const {
#ifdef __linux__
  Socket socket(FileDescriptor(accept4(fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)));
#else
  Socket socket(FileDescriptor(::accept(fd(), nullptr, nullptr)));
  if (socket) setCloseOnExec(socket.fd());
#endif
  if (socket) {
    socket.setOptions();
  } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
    throwError("cannot accept a connection");
  }
  return socket;
}

Socket Socket::connect(const in6_addr& host, uint16_t port) {
  sockaddr_storage address = {};
  socklen_t size = 0;
  if (IN6_IS_ADDR_V4MAPPED(&host)) {
    auto* to = reinterpret_cast<sockaddr_in*>(&address);
    to->sin_family = AF_INET;
    to->sin_port = htons(port);
    std::memcpy(&to->sin_addr, host.s6_addr + 12, sizeof to->sin_addr);
    size = sizeof *to;
  } else {
    auto* to = reinterpret_cast<sockaddr_in6*>(&address);
    to->sin6_family = AF_INET6;
    to->sin6_port = htons(port);
    to->sin6_addr = host;
    size = sizeof *to;
  }
  Socket socket = open(address.ss_family);
  if (!socket) {
    if (errno == EMFILE || errno == ENFILE) throwError("cannot open a socket");
    return socket;
  }
  socket.setOptions();
  const int result = ::connect(socket.fd(), reinterpret_cast<const sockaddr*>(&address), size);
  return result == 0 || wouldBlock(errno) ? std::move(socket) : Socket();
}

bool Socket::isConnected() const {
  int error = 0;
  socklen_t size = sizeof error;
  return getsockopt(fd(), SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}

Socket::Moved Socket::send(const iovec* parts, int numParts) const {
  msghdr message = {};
  message.msg_iov = const_cast<iovec*>(parts);
  message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(numParts);
  return moved(sendmsg(fd(), &message, kNoSignal));
}

Socket::Moved Socket::receive(const iovec* parts, int numParts) const {
  const ssize_t result = readv(fd(), parts, numParts);
  if (result == 0) return {0, 0, true};
  return moved(result);
}

void Socket::endSending() const noexcept { shutdown(fd(), SHUT_WR); }

std::vector<in6_addr> hostAddresses() {
  std::vector<in6_addr> addresses = {mapped(in_addr{htonl(INADDR_LOOPBACK)})};
  std::vector<in6_addr> ipv6;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) throwError("cannot list the host's addresses");
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, freeifaddrs);
  for (const ifaddrs* entry = list; entry; entry = entry->ifa_next) {
    if (!entry->ifa_addr || !(entry->ifa_flags & IFF_UP) || entry->ifa_flags & IFF_LOOPBACK) {
      continue;
    }
    if (entry->ifa_addr->sa_family == AF_INET) {
      addresses.push_back(mapped(reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr));
    } else if (entry->ifa_addr->sa_family == AF_INET6) {
      const in6_addr& host = reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr;
      if (!IN6_IS_ADDR_LINKLOCAL(&host)) ipv6.push_back(host);
    }
  }
  addresses.insert(addresses.end(), ipv6.begin(), ipv6.end());
  return addresses;
}

}  // namespace uniproc
