#pragma once

#include <pthread.h>

#include <string>

namespace uniproc {

// Sets the calling thread's name, as /proc/<pid>/task/*/comm shows it; Linux keeps 15 characters.
inline void setThreadName(const std::string& name) {
#ifdef __APPLE__
  pthread_setname_np(name.c_str());
#else
  pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
#endif
}

}  // namespace uniproc
