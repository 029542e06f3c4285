// What the library's tests share beyond csrc/testing: errors by kind.
#pragma once
#include "comm/error.h"
#include "testing/test.h"

// The expression throws comm::Error of this kind.
#define CHECK_FAILS(error_kind, ...)                                                     \
  try {                                                                                  \
    (void)(__VA_ARGS__);                                                                 \
    ::eager::test::failed(__FILE__, __LINE__, "does not throw: " #__VA_ARGS__);          \
  } catch (const ::eager::comm::Error& e) {                                              \
    if (e.kind != ::eager::comm::ErrorKind::error_kind)                                  \
      ::eager::test::failed(__FILE__, __LINE__, std::string("wrong kind: ") + e.what()); \
  }
