// CUDA C++ as a host compiler reads it: a thread of the system for each CUDA thread.
#pragma once
#include <atomic>
#include <barrier>
#include <cmath>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>
using std::exp, std::log1p, std::sqrt, std::tanh;
#define LSTM_HOST 1
#define __global__
#define __launch_bounds__(...)
struct Index { unsigned x, y, z; };
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;
static thread_local std::barrier<>* block_barrier;
static inline void __syncthreads() { block_barrier->arrive_and_wait(); }
static inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
static inline void grid_arrive(unsigned* counter) {
  std::atomic_ref<unsigned>(*counter).fetch_add(1, std::memory_order_release);
}
static inline void grid_wait(const unsigned* counter, unsigned target) {
  std::atomic_ref<unsigned> seen(*const_cast<unsigned*>(counter));
  while ((int)(seen.load(std::memory_order_acquire) - target) < 0) std::this_thread::yield();
}
template <class Real> static inline Real load_global(const Real* p) { return *p; }

template <class... Given, std::size_t... k>
void call(void (*kernel)(Given...), void** given, std::index_sequence<k...>) {
  kernel(*static_cast<std::decay_t<Given>*>(given[k])...);
}

template <class... Given>
void launch(void (*kernel)(Given...), unsigned blocks, unsigned threads, void** given) {
  std::vector<std::thread> running;
  std::vector<std::barrier<>*> barriers;
  for (unsigned b = 0; b < blocks; b++) {
    barriers.push_back(new std::barrier<>(threads));
    for (unsigned k = 0; k < threads; k++)
      running.emplace_back([=, barrier = barriers.back()] {
        threadIdx = {k, 0, 0}, blockIdx = {b, 0, 0};
        blockDim = {threads, 1, 1}, gridDim = {blocks, 1, 1}, block_barrier = barrier;
        call(kernel, given, std::index_sequence_for<Given...>{});
      });
  }
  for (auto& one : running) one.join();
  for (auto* barrier : barriers) delete barrier;
}
