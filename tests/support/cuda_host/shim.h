// CUDA C++ for a host compiler. No header is included, so that a kernel compiles quickly;
// runtime.cpp, which is compiled once, schedules the threads.
#pragma once
#define LSTM_HOST 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define CLUSTER(n)
#define DYNAMIC_SHARED(name) unsigned char* name = host_shared()

struct Index { unsigned x, y, z; };

extern "C" {
extern Index threadIdx, blockIdx, blockDim, gridDim;
void host_fail(const char* what);
unsigned char* host_shared();
void host_block_barrier();
void host_warp_barrier();
unsigned long long host_shuffle(unsigned long long value, unsigned lanes, unsigned kind);
void host_mma(float* d, const unsigned* a, const unsigned* b, unsigned kind);
void host_arrive(unsigned* counter);
void host_wait(const unsigned* counter, unsigned target);
unsigned host_cluster_rank();
void host_cluster_arrive();
void host_cluster_wait();
void* host_cluster_address(void* own, unsigned rank, unsigned size);
struct HostLaunch {
  unsigned grid[3], threads, shared, cluster, cooperative, resident, seed;
};
int host_launch(const HostLaunch*, void (*kernel)(void**), void** given, char* message, int room);
double tanh(double), exp(double), log1p(double), sqrt(double), fabs(double);
double fma(double, double, double);
float tanhf(float), expf(float), log1pf(float), sqrtf(float), fabsf(float);
float fmaf(float, float, float);
}
static inline float tanh(float x) { return tanhf(x); }
static inline float exp(float x) { return expf(x); }
static inline float log1p(float x) { return log1pf(x); }
static inline float sqrt(float x) { return sqrtf(x); }
static inline float fabs(float x) { return fabsf(x); }
static inline float fma(float x, float y, float z) { return fmaf(x, y, z); }

static inline void __syncthreads() { host_block_barrier(); }
static inline void __syncwarp() { host_warp_barrier(); }
static inline void __threadfence() {}

static inline unsigned __float_as_uint(float x) {
  unsigned bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
static inline float __uint_as_float(unsigned bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

static inline float widen_f16(unsigned short h) {
  const unsigned sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest > 0x7c00u) return __uint_as_float(0x7fffffffu);
  if (rest == 0x7c00u) return __uint_as_float(sign | 0x7f800000u);
  // The exponent's bias differs by 112; a product is exact, for subnormal numbers too.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}
static inline unsigned short narrow_f16(float x) {
  const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return 0x7fffu;
  if (rest >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above
  if (rest < 0x38800000u)  // subnormal: one in the last place of 0.5 is the unit of these
    return sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u);
  return sign | ((rest + 0xfffu + (rest >> 13 & 1u) - 0x38000000u) >> 13);
}
static inline float widen_bf16(unsigned short h) { return __uint_as_float((unsigned)h << 16); }
static inline unsigned short narrow_bf16(float x) {
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
static inline float round_tf32(float x) {
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return __uint_as_float(0x7fffe000u);
  return __uint_as_float((bits + 0x1000u) & 0xffffe000u);  // halves go away from zero
}

template <class T> static inline T load_global(const T* p) {
  if ((unsigned long long)p % sizeof(T)) host_fail("load_global of an address that is not aligned");
  return *p;
}
static inline void grid_arrive(unsigned* counter) { host_arrive(counter); }
static inline void grid_wait(const unsigned* counter, unsigned target) {
  host_wait(counter, target);
}

static inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  host_mma(d, a, b, 0);
}
static inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  host_mma(d, a, b, 1);
}
static inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  host_mma(d, a, b, 2);
}

static inline unsigned cluster_rank() { return host_cluster_rank(); }
static inline void cluster_arrive() { host_cluster_arrive(); }
static inline void cluster_wait() { host_cluster_wait(); }
template <class T> static inline void store_cluster(T* own, unsigned rank, T value) {
  *(T*)host_cluster_address(own, rank, sizeof(T)) = value;
}

static inline float shuffle_xor(float value, int lanes) {
  return __uint_as_float(host_shuffle(__float_as_uint(value), lanes, 0));
}
static inline unsigned shuffle_xor(unsigned value, int lanes) {
  return host_shuffle(value, lanes, 1);
}
static inline double shuffle_xor(double value, int lanes) {
  unsigned long long bits;
  __builtin_memcpy(&bits, &value, 8);
  bits = host_shuffle(bits, lanes, 2);
  __builtin_memcpy(&value, &bits, 8);
  return value;
}

// Types of a kernel's arguments, one letter each, and its call with an array of addresses.
template <class T> struct Letter;
template <class T> struct Letter<T*> { static constexpr char is = 'p'; };
template <> struct Letter<long long> { static constexpr char is = 'q'; };
template <> struct Letter<double> { static constexpr char is = 'd'; };
template <int... k> struct Numbers {};
template <int n, int... k> struct Count : Count<n - 1, n - 1, k...> {};
template <int... k> struct Count<0, k...> { typedef Numbers<k...> all; };
template <class... Given> struct Taken {
  static constexpr char letters[] = {Letter<Given>::is..., 0};
  template <int... k>
  static void call(void (*kernel)(Given...), void** given, Numbers<k...>) {
    kernel(*(Given*)given[k]...);
  }
};
template <class... Given> constexpr Taken<Given...> taken(void (*)(Given...)) { return {}; }
template <class... Given> static inline void call_with(void (*kernel)(Given...), void** given) {
  Taken<Given...>::call(kernel, given, typename Count<sizeof...(Given)>::all{});
}
#define HOST_SEEN extern "C" __attribute__((visibility("default")))
#define HOST_ENTRY(name)                                                                 \
  static void call_##name(void** given) { call_with(&name, given); }                     \
  HOST_SEEN const char* letters_##name() { return decltype(taken(&name))::letters; }     \
  HOST_SEEN int start_##name(const HostLaunch* launch, void** given, char* text, int n) { \
    return host_launch(launch, call_##name, given, text, n);                             \
  }
