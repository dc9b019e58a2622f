// The threads of a launch as fibers of one thread of the system.
//
// A fiber runs until it must wait for others; then the next one that can run goes on. Seed 0 takes
// them in their order; any other seed draws, so that a barrier that is missing shows. If nobody can
// run, or a rule of the device is broken, the launch ends with a message.
#include "shim.h"
#include "switch.h"
#include <sys/mman.h>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr std::size_t STACK = 64 * 1024, PAGE = 16 * 1024, GUARD = 256;
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

struct Group {  // of threads that wait for one another
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

std::vector<unsigned char*> stacks;  // kept from launch to launch

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

// Nobody can run: says who waits.
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

// Whether this lane is the last of its warp to come to a collective operation.
bool last_of(Warp& warp, unsigned kind) {
  if (warp.count && warp.kind != kind) fail("lanes of a warp are at different operations");
  warp.kind = kind;
  warp.waiting[warp.count++] = s.current;
  return warp.count == 32;
}

void go_on(Warp& warp) {
  warp.count = 0;
  for (int k = 0; k < 31; k++) push(warp.waiting[k]);
}

Warp& own_warp() { return s.current->block->warps[s.current->thread / 32]; }

float decoded(unsigned bits, unsigned half, unsigned kind) {
  unsigned short h = half ? bits >> 16 : bits & 0xffffu;
  return kind ? widen_bf16(h) : widen_f16(h);
}

// The fragments' places: PTX ISA, "Matrix fragments for mma.m16n8k16" and "mma.m16n8k8".
void multiply(Warp& warp, unsigned kind) {
  float a[16][16], b[16][8], d[16][8];
  const int K = kind == 2 ? 8 : 16;
  for (int lane = 0; lane < 32; lane++) {
    const int group = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; r++) {
      const int row = group + (r & 1 ? 8 : 0), place = r >> 1;
      d[group + (r >> 1 ? 8 : 0)][2 * t + (r & 1)] = warp.d[lane][r];
      if (kind == 2) {
        a[row][t + 4 * place] = __uint_as_float(warp.a[lane][r] & 0xffffe000u);
        if (r < 2) b[t + 4 * r][group] = __uint_as_float(warp.b[lane][r] & 0xffffe000u);
        continue;
      }
      for (int half = 0; half < 2; half++) {
        a[row][2 * t + half + 8 * place] = decoded(warp.a[lane][r], half, kind);
        if (r < 2) b[2 * t + half + 8 * r][group] = decoded(warp.b[lane][r], half, kind);
      }
    }
  }
  for (int row = 0; row < 16; row++)
    for (int k = 0; k < K; k++)
      for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; lane++)
    for (int r = 0; r < 4; r++)
      warp.product[lane][r] = d[lane / 4 + (r >> 1 ? 8 : 0)][2 * (lane % 4) + (r & 1)];
}

void finish(Block* block) {
  Cluster* cluster = block->cluster;
  const unsigned char* shared = block->memory.data();
  const std::size_t end = block->memory.size() - GUARD;
  for (std::size_t k = 0; k < GUARD; k++)
    if (shared[k] != FENCE || shared[end + k] != FENCE)
      fail("a write outside the block's shared memory");
  if (--cluster->live == 0) s.over = cluster;
}

// What every fiber runs.
void enter() {
  s.kernel(s.given);
  Fiber* me = s.current;
  if (me->arrived) fail("a thread ends between cluster_arrive and cluster_wait");
  s.finished++, s.unfinished--;
  if (--me->block->live == 0) finish(me->block);
  leave(me, s.over ? nullptr : take());
  __builtin_unreachable();
}

unsigned char* stack(std::size_t k) {
  while (stacks.size() <= k) {
    void* made = mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (made == MAP_FAILED) fail("no memory for the threads' stacks");
    mprotect(made, PAGE, PROT_NONE);  // a stack that is too small is a fault
    stacks.push_back(static_cast<unsigned char*>(made) + PAGE);
  }
  return stacks[k];
}

void begin(Cluster& cluster, std::size_t first, std::size_t first_stack) {
  const HostLaunch& l = s.launch;
  cluster.barrier = Group(l.threads * l.cluster);
  cluster.live = l.cluster;
  for (unsigned rank = 0; rank < l.cluster; rank++) {
    Block& block = *cluster.blocks[rank];
    const std::size_t k = first + rank, plane = std::size_t{l.grid[0]} * l.grid[1];
    block.index = {unsigned(k % l.grid[0]), unsigned(k % plane / l.grid[0]), unsigned(k / plane)};
    block.cluster = &cluster, block.rank = rank, block.live = l.threads;
    block.barrier = Group(l.threads);
    block.memory.assign(l.shared + 2 * GUARD, FENCE);
    std::memset(block.memory.data() + GUARD, POISON, l.shared);
    block.warps.assign(l.threads / 32, Warp{});
    block.fibers.resize(l.threads);
    for (unsigned thread = 0; thread < l.threads; thread++) {
      const std::size_t n = first_stack + rank * l.threads + thread;
      unsigned char* bottom = stack(n);
      // Stacks begin at different places of a page, so that they do not share the cache's sets.
      unsigned char* top = bottom + STACK - n % 32 * 128;
      block.fibers[thread] = {first_frame(top, enter, bottom), &block, thread, 0, false};
      push(&block.fibers[thread]);
    }
  }
  s.unfinished += std::size_t{l.threads} * l.cluster;
}

}  // namespace

extern "C" void host_fail(const char* what) { fail("%s", what); }

extern "C" unsigned char* host_shared() { return s.current->block->memory.data() + GUARD; }

extern "C" void host_block_barrier() { meet(s.current->block->barrier); }

extern "C" void host_warp_barrier() {
  Warp& warp = own_warp();
  last_of(warp, 100) ? go_on(warp) : pause();
}

extern "C" unsigned long long host_shuffle(unsigned long long value, unsigned lanes,
                                           unsigned kind) {
  Warp& warp = own_warp();
  const unsigned lane = threadIdx.x % 32;
  if (lanes > 31) fail("shuffle_xor with a lane mask of %u", lanes);
  if (warp.count && warp.lanes != lanes) fail("lanes of a warp shuffle differently");
  warp.value[lane] = value, warp.lanes = lanes;
  if (!last_of(warp, 200 + kind)) {
    pause();
    return warp.shuffled[lane];
  }
  for (unsigned k = 0; k < 32; k++) warp.shuffled[k] = warp.value[k ^ lanes];
  go_on(warp);
  return warp.shuffled[lane];
}

extern "C" void host_mma(float* d, const unsigned* a, const unsigned* b, unsigned kind) {
  Warp& warp = own_warp();
  const unsigned lane = threadIdx.x % 32;
  std::memcpy(warp.a[lane], a, 16), std::memcpy(warp.b[lane], b, 8);
  std::memcpy(warp.d[lane], d, 16);
  if (last_of(warp, 300 + kind)) {
    multiply(warp, kind);
    go_on(warp);
  } else {
    pause();
  }
  std::memcpy(d, warp.product[lane], 16);
}

extern "C" void host_arrive(unsigned* counter) { ++*counter; }

extern "C" void host_wait(const unsigned* counter, unsigned target) {
  if (!s.launch.together) fail("grid_wait in a launch whose blocks need not run together");
  Wait wait{s.current, counter, target};
  if (satisfied(wait) && !s.launch.seed) return;
  s.waits.push_back(wait);
  pause();
}

extern "C" unsigned host_cluster_rank() { return s.current->block->rank; }

extern "C" void host_cluster_arrive() {
  Fiber* me = s.current;
  Group& group = me->block->cluster->barrier;
  if (me->arrived) fail("cluster_arrive twice without cluster_wait");
  me->arrived = true, me->phase = group.phase;
  if (++group.count < group.size) return;
  group.count = 0, group.phase++;
  for (Fiber* fiber : group.waiting) push(fiber);
  group.waiting.clear();
}

extern "C" void host_cluster_wait() {
  Fiber* me = s.current;
  Group& group = me->block->cluster->barrier;
  if (!me->arrived) fail("cluster_wait without cluster_arrive");
  me->arrived = false;
  if (group.phase == me->phase)
    group.waiting.push_back(me);
  else if (s.launch.seed)
    push(me);
  else
    return;
  pause();
}

extern "C" void* host_cluster_address(void* own, unsigned rank, unsigned size) {
  Block* me = s.current->block;
  Cluster* cluster = me->cluster;
  if (rank >= s.launch.cluster) fail("store_cluster to rank %u of %u", rank, s.launch.cluster);
  const std::size_t offset = static_cast<unsigned char*>(own) - host_shared();
  if (offset > s.launch.shared || offset + size > s.launch.shared)
    fail("store_cluster outside shared memory, at byte %zd of %u",
         static_cast<std::ptrdiff_t>(offset), s.launch.shared);
  if (offset % size) fail("store_cluster to an address that is not aligned");
  // A block of a cluster may not have begun yet until all have met once, and is gone when it ends.
  if (!cluster->barrier.phase) fail("store_cluster before the cluster's blocks have met");
  if (!cluster->blocks[rank]->live) fail("store_cluster into a block that is over");
  return cluster->blocks[rank]->memory.data() + GUARD + offset;
}

// Runs a launch, `resident` blocks of it at a time. 0: done; else the message says what is wrong.
extern "C" int host_launch(const HostLaunch* launch, void (*kernel)(void**), void** given,
                           char* message, int room) {
  s = State{};
  s.launch = *launch, s.kernel = kernel, s.given = given, s.message = message, s.room = room;
  s.random = 0x9e3779b97f4a7c15u * (launch->seed + 1);
  blockDim = {launch->threads, 1, 1}, gridDim = {launch->grid[0], launch->grid[1], launch->grid[2]};
  threadIdx = {};
  const std::size_t clusters =
      std::size_t{launch->grid[0]} * launch->grid[1] * launch->grid[2] / launch->cluster;
  std::size_t room_for = launch->resident / launch->cluster, begun = 0, done = 0, threads = 1;
  if (room_for > clusters) room_for = clusters;
  while (threads < room_for * launch->cluster * launch->threads) threads *= 2;
  s.ready.resize(threads);
  std::vector<Cluster> running(room_for);
  std::vector<std::unique_ptr<Block>> blocks;
  for (Cluster& cluster : running)
    for (unsigned k = 0; k < launch->cluster; k++) {
      blocks.push_back(std::make_unique<Block>());
      cluster.blocks.push_back(blocks.back().get());
    }
  const std::size_t each = std::size_t{launch->cluster} * launch->threads;
  for (std::size_t k = 0; k < room_for; k++, begun++)
    begin(running[k], begun * launch->cluster, k * each);
  while (done < clusters && !s.failed) {
    Fiber* next = take();
    if (next) resume(&s.main, next); else tell_deadlock();
    if (s.failed) break;
    Cluster* free = s.over;
    s.over = nullptr, done++;
    if (begun < clusters) begin(*free, begun++ * launch->cluster, (free - running.data()) * each);
  }
  return s.failed;
}
