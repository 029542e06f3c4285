// Intrusive reference counting.
#pragma once
#include <atomic>
#include <cstdint>
#include <utility>

namespace eager::core {

struct Counted {
  mutable std::atomic<int32_t> refs{0};
};

// T derives from Counted and gives `static void destroy(T*)`.
template <class T>
class Ref {
 public:
  Ref() = default;
  Ref(std::nullptr_t) {}
  explicit Ref(T* p) : p_(p) { retain(); }
  // Takes over one count that is already there (new objects start with refs = 1).
  static Ref adopt(T* p) {
    Ref r;
    r.p_ = p;
    return r;
  }
  Ref(const Ref& o) : p_(o.p_) { retain(); }
  Ref(Ref&& o) noexcept : p_(std::exchange(o.p_, nullptr)) {}
  template <class U>
  Ref(const Ref<U>& o) : p_(o.get()) {
    retain();
  }
  Ref& operator=(Ref o) noexcept {
    std::swap(p_, o.p_);
    return *this;
  }
  ~Ref() {
    // A sole owner needs no locked instruction: nobody else can take a reference.  Acquire and
    // acq_rel: the destroying thread must see every other owner's writes.
    if (p_ && (unique() || p_->refs.fetch_sub(1, std::memory_order_acq_rel) == 1)) T::destroy(p_);
  }
  T* get() const { return p_; }
  T* operator->() const { return p_; }
  T& operator*() const { return *p_; }
  explicit operator bool() const { return p_ != nullptr; }
  bool unique() const { return p_ && p_->refs.load(std::memory_order_acquire) == 1; }
  T* release() { return std::exchange(p_, nullptr); }

 private:
  void retain() {
    if (p_) p_->refs.fetch_add(1, std::memory_order_relaxed);
  }
  T* p_ = nullptr;
};

template <class T>
bool operator==(const Ref<T>& a, const Ref<T>& b) {
  return a.get() == b.get();
}

}  // namespace eager::core
