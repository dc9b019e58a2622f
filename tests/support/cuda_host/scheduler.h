// Scheduler of fibers: their barriers, and the choice of the next one.
#pragma once
#include "shim.h"
#include "switch.h"
#include <cstdarg>
#include <cstdio>
#include <utility>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr std::size_t STACK = 64 * 1024, PAGE = 16 * 1024;  // of 4 to 16 KB
constexpr std::size_t GUARD = 256;
constexpr unsigned char POISON = 0xff;  // NaN in every type of floats
constexpr unsigned char FENCE = 0xa5;

struct Block;

struct Fiber {
  void* sp;
  Block* block;
  unsigned thread;
  unsigned phase;  // of the cluster's barrier at the last arrival
  bool arrived;    // at the cluster's barrier, without having waited yet
};

struct Warp {
  unsigned count, kind;
  Fiber* waiting[32];
  unsigned long long value[32], shuffled[32];
  unsigned lanes;
  unsigned a[32][4], b[32][2];
  float d[32][4], product[32][4];
};

struct Group {  // threads that wait for one another
  explicit Group(unsigned size = 0) : size(size) {}
  unsigned size, count = 0, phase = 0;
  std::vector<Fiber*> waiting;
};

struct Cluster {
  Group barrier;
  std::vector<Block*> blocks;
  unsigned live = 0;
};

struct Block {
  Index index;
  Cluster* cluster;
  unsigned rank, live;
  std::vector<unsigned char> memory;
  Group barrier;
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
};

struct Wait {
  Fiber* fiber;
  const unsigned* counter;
  unsigned target;
};

struct State {
  HostLaunch launch;
  void (*kernel)(void**);
  void** given;
  void* main;
  Fiber* current;
  std::vector<Fiber*> ready;  // a ring
  std::size_t head, count;
  std::vector<Wait> waits;
  std::uint64_t random;
  std::size_t finished, unfinished;  // threads of clusters that have begun
  char* message;
  int room;
  bool failed;
  Cluster* over;
} s;

unsigned draw(std::size_t below) {
  s.random ^= s.random << 13, s.random ^= s.random >> 7, s.random ^= s.random << 17;
  return static_cast<unsigned>((s.random >> 11) % below);
}

[[noreturn]] void fail(const char* form, ...) {
  va_list given;
  va_start(given, form);
  int n = std::vsnprintf(s.message, s.room, form, given);
  va_end(given);
  if (n < s.room)
    std::snprintf(s.message + n, s.room - n, " (block %u,%u,%u thread %u)", blockIdx.x, blockIdx.y,
                  blockIdx.z, threadIdx.x);
  s.failed = true;
  void* lost;
  host_switch(&lost, s.main);
  __builtin_unreachable();
}

void push(Fiber* fiber) { s.ready[(s.head + s.count++) & (s.ready.size() - 1)] = fiber; }

bool satisfied(const Wait& wait) {
  return static_cast<int>(*const_cast<const volatile unsigned*>(wait.counter) - wait.target) >= 0;
}

void release(std::size_t k) {
  push(s.waits[k].fiber);
  s.waits[k] = s.waits.back();
  s.waits.pop_back();
}

// The next fiber that can run; null: none.
Fiber* take() {
  if (s.launch.seed && !s.waits.empty()) {
    std::size_t k = draw(s.waits.size());
    if (satisfied(s.waits[k])) release(k);
  }
  if (!s.count)
    for (std::size_t k = s.waits.size(); k-- > 0;)
      if (satisfied(s.waits[k])) release(k);
  if (!s.count) return nullptr;
  std::size_t mask = s.ready.size() - 1;
  if (s.launch.seed) std::swap(s.ready[s.head], s.ready[(s.head + draw(s.count)) & mask]);
  Fiber* found = s.ready[s.head];
  s.head = (s.head + 1) & mask, s.count--;
  return found;
}

void resume(void** from, Fiber* to) {
  s.current = to;
  threadIdx.x = to->thread;
  blockIdx = to->block->index;
  host_switch(from, to->sp);
}

// No fiber can run: reports which ones wait.
void tell_deadlock() {
  s.failed = true;
  int n = std::snprintf(s.message, s.room,
                        "deadlock: %zu threads wait and %zu are over; %zu of them wait in grid_wait,"
                        " the others at barriers",
                        s.unfinished, s.finished, s.waits.size());
  if (s.waits.empty() || n >= s.room) return;
  const Wait& wait = s.waits[0];
  const Index& block = wait.fiber->block->index;
  std::snprintf(s.message + n, s.room - n, "; block %u,%u,%u sees %u and wants %u", block.x, block.y,
                block.z, *wait.counter, wait.target);
}

void leave(Fiber* me, Fiber* next) {
  if (next) return resume(&me->sp, next);
  if (!s.over) tell_deadlock();
  host_switch(&me->sp, s.main);
}

// Let others run until this fiber is pushed again.
void pause() {
  Fiber* me = s.current;
  Fiber* next = take();
  if (next == me) return;
  leave(me, next);
}

void meet(Group& group) {
  if (++group.count < group.size) {
    group.waiting.push_back(s.current);
    return pause();
  }
  group.count = 0, group.phase++;
  for (Fiber* fiber : group.waiting) push(fiber);
  group.waiting.clear();
  if (s.launch.seed) {
    push(s.current);
    pause();
  }
}

}  // namespace
