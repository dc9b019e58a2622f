// Operations of the 32 lanes of a warp.
#pragma once
#include "scheduler.h"
#include <cstring>

namespace {

// True if this lane is the last of its warp to reach a collective operation.
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

}  // namespace

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
