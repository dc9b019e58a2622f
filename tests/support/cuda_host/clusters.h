// Barriers of a block, a cluster and a grid.
#pragma once
#include "scheduler.h"

extern "C" void host_fail(const char* what) { fail("%s", what); }

extern "C" unsigned char* host_shared() { return s.current->block->memory.data() + GUARD; }

extern "C" void host_block_barrier() { meet(s.current->block->barrier); }

extern "C" void host_arrive(unsigned* counter) { ++*counter; }

extern "C" void host_wait(const unsigned* counter, unsigned target) {
  if (!s.launch.cooperative) fail("grid_wait in a launch that is not cooperative");
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
  // A block of a cluster exists from the first cluster barrier until it ends.
  if (!cluster->barrier.phase) fail("store_cluster before the cluster's blocks have met");
  if (!cluster->blocks[rank]->live) fail("store_cluster into a block that is over");
  return cluster->blocks[rank]->memory.data() + GUARD + offset;
}
