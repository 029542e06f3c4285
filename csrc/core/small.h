// A vector whose first N elements need no allocation.  T is trivially copyable or a Ref.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <new>
#include <type_traits>
#include <utility>

namespace eager::core {

template <class T, size_t N>
class Small {
 public:
  Small() = default;
  Small(std::initializer_list<T> xs) : Small(xs.begin(), xs.end()) {}
  template <class It>
  Small(It first, It last) {
    if constexpr (std::is_trivially_copyable_v<T> &&
                  (std::is_same_v<It, const T*> || std::is_same_v<It, T*>)) {
      const size_t n = size_t(last - first);
      if (n > N) grow(n);
      if (n) std::memcpy(data_, first, n * sizeof(T));
      size_ = uint32_t(n);
    } else {
      for (; first != last; ++first) push_back(*first);
    }
  }
  explicit Small(size_t n, const T& value = T()) { resize(n, value); }
  Small(const Small& o) {
    if (o.size_ > N) grow(o.size_);
    for (; size_ < o.size_; ++size_) new (data_ + size_) T(o.data_[size_]);
  }
  Small(Small&& o) noexcept { steal(o); }
  Small& operator=(const Small& o) {
    if (this != &o) {
      Small copy(o);
      clear_all();
      steal(copy);
    }
    return *this;
  }
  Small& operator=(Small&& o) noexcept {
    if (this != &o) {
      clear_all();
      steal(o);
    }
    return *this;
  }
  ~Small() { clear_all(); }

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  T& back() { return data_[size_ - 1]; }
  const T& back() const { return data_[size_ - 1]; }
  void push_back(T x) {
    if (size_ == capacity_) grow(capacity_ * 2);
    new (data_ + size_++) T(std::move(x));
  }
  template <class... Args>
  T& emplace_back(Args&&... args) {  // of an aggregate, too
    if (size_ == capacity_) grow(capacity_ * 2);
    return *new (data_ + size_++) T{std::forward<Args>(args)...};
  }
  void pop_back() { data_[--size_].~T(); }
  void resize(size_t n, const T& value = T()) {
    if (n > capacity_) grow(n);
    while (size_ > n) pop_back();
    while (size_ < n) new (data_ + size_++) T(value);
  }
  void clear() {
    while (size_) pop_back();
  }

 private:
  void grow(size_t n) {
    if (n <= N) __builtin_unreachable();  // keeps the compiler from warning of empty blocks
    T* p = static_cast<T*>(::operator new(n * sizeof(T)));
    for (size_t i = 0; i < size_; ++i) {
      new (p + i) T(std::move(data_[i]));
      data_[i].~T();
    }
    if (data_ != inline_data()) ::operator delete(data_);
    data_ = p;
    capacity_ = uint32_t(n);
  }
  void clear_all() {
    for (size_t i = 0; i < size_; ++i) data_[i].~T();
    if (data_ != inline_data()) ::operator delete(data_);
    data_ = inline_data();
    size_ = 0;
    capacity_ = N;
  }
  void steal(Small& o) noexcept {
    if (o.data_ != o.inline_data()) {
      data_ = o.data_;
      capacity_ = o.capacity_;
      size_ = o.size_;
    } else {
      for (size_t i = 0; i < o.size_; ++i) {
        new (inline_data() + i) T(std::move(o.data_[i]));
        o.data_[i].~T();
      }
      size_ = o.size_;
    }
    o.data_ = o.inline_data();
    o.size_ = 0;
    o.capacity_ = N;
  }
  T* inline_data() { return std::launder(reinterpret_cast<T*>(inline_)); }
  const T* inline_data() const { return std::launder(reinterpret_cast<const T*>(inline_)); }

  alignas(T) unsigned char inline_[N * sizeof(T)];
  T* data_ = inline_data();
  uint32_t size_ = 0;
  uint32_t capacity_ = N;
};

template <class T, size_t N>
bool operator==(const Small<T, N>& a, const Small<T, N>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (!(a[i] == b[i])) return false;
  return true;
}

using Dims = Small<int64_t, 6>;

}  // namespace eager::core
