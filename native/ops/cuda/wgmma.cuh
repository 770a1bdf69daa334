// Warpgroup matrix products of Hopper (wgmma, sm_90a), with 128-byte swizzled operands in shared
// memory. PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
//
// A swizzled tile is made of atoms of 8 rows of 128 bytes, aligned to 1,024 bytes, in which the
// 16-byte part p of row r lies at part p ^ r. Bulk tensor copies write this layout.
//
// A warpgroup's product has 64 rows. Warp w of the group holds rows 16 w .. 16 w + 15; within
// these, accumulators and a left operand in registers have the layouts of mma.sync (mma.cuh).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace uniproc::cuda {

constexpr int kWarpgroupSize = 128;  // threads

// Descriptor of an operand in shared memory with 128-byte swizzle.
//
// Rows along k (queries, keys): `rowStride` is the distance in bytes between groups of 8 rows;
// columnStride is not used. The next 16 elements along k are 32 bytes further.
// Rows across k (values: each row of the atom is one k): rowStride is the distance between groups
// of 8 k, columnStride that between groups of 64 columns.
__device__ inline uint64_t operandDescriptor(uint32_t address, uint32_t rowStride,
                                             uint32_t columnStride) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | uint64_t{rowStride >> 4} << 32 | uint64_t{columnStride >> 4} << 16 |
         (address & 0x3ffff) >> 4;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Orders register writes before the products that follow.
__device__ inline void fenceProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of products.
__device__ inline void commitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most kLeft groups are in flight. keepRegisters must follow for the registers of
// the groups that ended.
template <int kLeft>
__device__ inline void waitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// Keeps the compiler from moving accesses of these registers across this point, since it does not
// know that a product reads or writes them until it is waited for.
template <int kCount>
__device__ inline void keepRegisters(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
__device__ inline void keepRegisters(uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// An instruction's accumulators as operands, and their names in its text. The instructions below
// exist for both half types, `TYPE` in their text.
#define UNIPROC_SUMS_16(d)                                                                        \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15])
#define UNIPROC_SUMS_32(d)                                                                        \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),  \
      "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),  \
      "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define UNIPROC_SUMS_64(d)                                                                       \
  UNIPROC_SUMS_32(d), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),           \
      "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), \
      "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), \
      "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), \
      "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define UNIPROC_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define UNIPROC_NAMES_32 \
  UNIPROC_NAMES_16       \
  ", "                   \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define UNIPROC_NAMES_64                                                             \
  UNIPROC_NAMES_32                                                                   \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// Starts d = a b^T (+ d if `accumulate`), for a [64, 16] and b [2 kCount, 16] with rows along k.
template <class T, int kCount>
__device__ inline void multiplyRows(float (&d)[kCount], uint64_t a, uint64_t b, int accumulate) {
  static_assert(kCount == 64, "128 columns");
#define UNIPROC_MULTIPLY(TYPE)                                                           \
  asm volatile(                                                                          \
      "{\n"                                                                              \
      ".reg .pred accumulate;\n"                                                         \
      "setp.ne.b32 accumulate, %66, 0;\n"                                                \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" UNIPROC_NAMES_64 \
      "}, %64, %65, accumulate, 1, 1, 0, 0;\n"                                           \
      "}\n"                                                                              \
      : UNIPROC_SUMS_64(d)                                                               \
      : "l"(a), "l"(b), "r"(accumulate))
  if constexpr (std::is_same_v<T, __half>) {
    UNIPROC_MULTIPLY("f16");
  } else {
    UNIPROC_MULTIPLY("bf16");
  }
#undef UNIPROC_MULTIPLY
}

// The same for `a` in registers.
template <class T, int kCount>
__device__ inline void multiplyRows(float (&d)[kCount], const uint32_t* a, uint64_t b,
                                    int accumulate) {
  static_assert(kCount == 16 || kCount == 32 || kCount == 64, "32, 64 or 128 columns");
  constexpr bool kHalf = std::is_same_v<T, __half>;
#define UNIPROC_MULTIPLY(TYPE, COLUMNS, COUNT, A0, A1, A2, A3, B, ACCUMULATE) \
  asm volatile(                                                               \
      "{\n"                                                                   \
      ".reg .pred accumulate;\n"                                              \
      "setp.ne.b32 accumulate, " ACCUMULATE                                   \
      ", 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." TYPE "." TYPE    \
      " {" UNIPROC_NAMES_##COUNT "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " B    \
                                 ", accumulate, 1, 1, 0;\n"                   \
                                 "}\n"                                        \
      : UNIPROC_SUMS_##COUNT(d)                                               \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
#define UNIPROC_MULTIPLY_16(TYPE) \
  UNIPROC_MULTIPLY(TYPE, "32", 16, "%16", "%17", "%18", "%19", "%20", "%21")
#define UNIPROC_MULTIPLY_32(TYPE) \
  UNIPROC_MULTIPLY(TYPE, "64", 32, "%32", "%33", "%34", "%35", "%36", "%37")
#define UNIPROC_MULTIPLY_64(TYPE) \
  UNIPROC_MULTIPLY(TYPE, "128", 64, "%64", "%65", "%66", "%67", "%68", "%69")
  if constexpr (kCount == 16 && kHalf) {
    UNIPROC_MULTIPLY_16("f16");
  } else if constexpr (kCount == 16) {
    UNIPROC_MULTIPLY_16("bf16");
  } else if constexpr (kCount == 32 && kHalf) {
    UNIPROC_MULTIPLY_32("f16");
  } else if constexpr (kCount == 32) {
    UNIPROC_MULTIPLY_32("bf16");
  } else if constexpr (kHalf) {
    UNIPROC_MULTIPLY_64("f16");
  } else {
    UNIPROC_MULTIPLY_64("bf16");
  }
#undef UNIPROC_MULTIPLY_16
#undef UNIPROC_MULTIPLY_32
#undef UNIPROC_MULTIPLY_64
#undef UNIPROC_MULTIPLY
}

// Starts d += a b for a [64, 16] in registers and b [16, 2 kCount] with rows across k.
template <class T, int kCount>
__device__ inline void multiplyColumns(float (&d)[kCount], const uint32_t* a, uint64_t b) {
  static_assert(kCount == 32 || kCount == 64, "64 or 128 columns");
  constexpr bool kHalf = std::is_same_v<T, __half>;
#define UNIPROC_MULTIPLY_32(TYPE)                                                                \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" UNIPROC_NAMES_32 \
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"                                     \
               : UNIPROC_SUMS_32(d)                                                              \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define UNIPROC_MULTIPLY_64(TYPE)                                                                 \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" UNIPROC_NAMES_64 \
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                                      \
               : UNIPROC_SUMS_64(d)                                                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (kHalf && kCount == 32) {
    UNIPROC_MULTIPLY_32("f16");
  } else if constexpr (kCount == 32) {
    UNIPROC_MULTIPLY_32("bf16");
  } else if constexpr (kHalf) {
    UNIPROC_MULTIPLY_64("f16");
  } else {
    UNIPROC_MULTIPLY_64("bf16");
  }
#undef UNIPROC_MULTIPLY_32
#undef UNIPROC_MULTIPLY_64
}

// Starts d = a b^T (+ d if `accumulate`), for a [64, 32] and b [8, 32], both e4m3 in shared memory
// with rows along k. The tensor cores align the products to the largest and keep about 14 bits: add
// no more than 128 of k in `d` (DeepSeek-V3 technical report, section 3.3.2).
__device__ inline void multiplyFloat8Rows(float (&d)[4], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred accumulate;\n"
      "setp.ne.b32 accumulate, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%0, %1, %2, %3}, %4, %5, accumulate, "
      "1, 1;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "l"(a), "l"(b), "r"(accumulate));
}

#undef UNIPROC_SUMS_16
#undef UNIPROC_SUMS_32
#undef UNIPROC_SUMS_64
#undef UNIPROC_NAMES_16
#undef UNIPROC_NAMES_32
#undef UNIPROC_NAMES_64

// Gives this warpgroup's registers per thread back, or takes more from what others gave back.
template <int kRegisters>
__device__ inline void releaseRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void acquireRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#endif

}  // namespace uniproc::cuda
