// Stack of a fiber, and the switch from one fiber to another.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(_WIN32)
#define OWN_SWITCH 1
// Saves the callee-saved registers, switches stacks, and returns on the other stack.
extern "C" void host_switch(void** from, void* to) asm("host_switch");
asm(R"(
.text
.globl host_switch
host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
static void* first_frame(unsigned char* top, void (*enter)()) {
  void** sp = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(top) & ~std::uintptr_t{15});
  *--sp = nullptr;  // as if `enter` had been called: 8 below a multiple of 16
  *--sp = reinterpret_cast<void*>(enter);
  for (int k = 0; k < 6; k++) *--sp = nullptr;
  return sp;
}
#elif defined(__aarch64__) && !defined(_WIN32)
#define OWN_SWITCH 1
extern "C" void host_switch(void** from, void* to) asm("host_switch");
asm(R"(
.text
.globl host_switch
.p2align 2
host_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
static void* first_frame(unsigned char* top, void (*enter)()) {
  void** sp = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(top) & ~std::uintptr_t{15});
  sp -= 20;
  for (int k = 0; k < 20; k++) sp[k] = nullptr;
  sp[11] = reinterpret_cast<void*>(enter);  // x30
  return sp;
}
#else
#include <ucontext.h>
// A context begins at the lowest address of its stack.
static void host_switch(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}
static void* first_frame(unsigned char* top, void (*enter)(), unsigned char* bottom) {
  ucontext_t* made = reinterpret_cast<ucontext_t*>(bottom);
  getcontext(made);
  made->uc_stack.ss_sp = bottom + sizeof(ucontext_t) + 64;
  made->uc_stack.ss_size = top - bottom - sizeof(ucontext_t) - 64;
  made->uc_link = nullptr;
  makecontext(made, enter, 0);
  return made;
}
#endif
#ifdef OWN_SWITCH
static void* first_frame(unsigned char* top, void (*enter)(), unsigned char*) {
  return first_frame(top, enter);
}
#endif
