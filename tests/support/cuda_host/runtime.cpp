// Runs the threads of a launch as fibers of one system thread.
//
// A fiber runs until it must wait; then the next fiber that can run continues. Seed 0 takes
// them in order; any other seed takes a random one, so a missing barrier shows. If no fiber can
// run, or a rule of the device is broken, the launch ends with a message.
#include "clusters.h"
#include "scheduler.h"
#include "warps.h"
#include <sys/mman.h>
#include <cstring>
#include <memory>

namespace {

std::vector<unsigned char*> stacks;  // kept from launch to launch

void finish(Block* block) {
  Cluster* cluster = block->cluster;
  const unsigned char* shared = block->memory.data();
  const std::size_t end = block->memory.size() - GUARD;
  for (std::size_t k = 0; k < GUARD; k++)
    if (shared[k] != FENCE || shared[end + k] != FENCE)
      fail("a write outside the block's shared memory");
  if (--cluster->live == 0) s.over = cluster;
}

// Body of every fiber.
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

// Runs a launch, `resident` blocks at a time. Returns 0, or sets the message to the problem.
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
