// Products of 33 to 256 rows on Hopper with what Triton 3.6 has no words for: tiles of any width, so that their number
// suits that of the multiprocessors, and sums of several blocks added up out of each other's shared memory.
//
// out = act(x Wᵀ + bias) + residual. A block computes X_ROWS rows of the input against W_ROWS rows of the weight: one
// warp copies both, a step of 64 along K at a time, through a ring in shared memory (tensor memory accelerator, TMA),
// two warpgroups multiply. NUM_SPLITS blocks that each take a stretch of K of the same outputs form a cluster; each
// then adds up a part of the rows, in the order of K: the result does not depend on who was first. Copies of the weight
// begin before the kernel before has ended (programmatic dependent launch).
//
// Compiled at run time with these macros (cluster.py): X_ROWS, W_ROWS, NUM_STAGES, NUM_SPLITS, ACT, HAS_BIAS,
// HAS_RESIDUAL, OUT_FLOAT, IS_HALF, MIN_BLOCKS; and wgmma(acc, a, b, keeps), of 64 x GROUP_COLUMNS x 16.
//
// Sources: CUDA C++ Programming Guide (clusters, programmatic dependent launch), PTX ISA 8.x (wgmma's operand and
// fragment layouts, mbarrier, cp.async.bulk.tensor).

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

struct alignas(64) TensorMap { u64 words[16]; };

enum { NONE, SILU, GELU_TANH, GELU };
constexpr bool IS_GATED = ACT != NONE;
constexpr int OUT_COLUMNS = IS_GATED ? W_ROWS / 2 : W_ROWS;  // of a block's tile
constexpr int STEP = 64, LINE = STEP * 2;                    // along K: one swizzled line of 128 bytes
constexpr int W_BYTES = W_ROWS * LINE, X_BYTES = X_ROWS * LINE;
constexpr int NUM_CONSUMERS = 256, NUM_THREADS = NUM_CONSUMERS + 32;
constexpr bool SPLITS_COLUMNS = X_ROWS <= 64;  // between the warpgroups; else they split the rows
constexpr int ROW_BLOCKS = X_ROWS <= 128 ? 1 : X_ROWS / 128;  // of 64 rows, of a warpgroup
static_assert(GROUP_COLUMNS == (SPLITS_COLUMNS ? W_ROWS / 2 : W_ROWS));
static_assert(!IS_GATED || NUM_SPLITS == 1);
// Where arithmetic is the limit, the next step's products are asked for before this one's are done.
constexpr int NUM_AHEAD = X_ROWS > 128 ? 1 : 0;
constexpr int SUM_STRIDE = W_ROWS + (40 - W_ROWS % 32) % 32;  // of sums in shared memory: lanes store to distinct banks
constexpr u64 EVICT_FIRST = 0x12F0000000000000, EVICT_LAST = 0x14F0000000000000;

__device__ __forceinline__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void init_barrier(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void expect_bytes(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void wait_for(u32 barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ void sync_cluster() {
  if constexpr (NUM_SPLITS > 1)
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(NUM_CONSUMERS) : "memory"); }

// A box of rows, one step wide.
__device__ __forceinline__ void copy_rows(const TensorMap& map, u32 to, u32 barrier, int k, int row, u64 hint) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(&map), "r"(k), "r"(row), "r"(barrier), "l"(hint) : "memory");
}

// Of a gated weight: eights of gates and of the rows that they gate by turns, from the `eight`th on.
__device__ __forceinline__ void copy_gated(const TensorMap& map, u32 to, u32 barrier, int k, int eight, u64 hint) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %3, %4}], [%5], %6;" ::"r"(to), "l"(&map), "r"(k), "r"(0), "r"(eight), "r"(barrier),
      "l"(hint) : "memory");
}

// A matrix of 128-byte rows, swizzled, as the tensor cores read it: eight rows are 1,024 bytes.
__device__ __forceinline__ u64 matrix_descriptor(u32 address) {
  return (u64{1} << 62) | (u64{8 * LINE >> 4} << 32) | (u64{1} << 16) | ((address & 0x3FFFF) >> 4);
}

// Four sums of the block that took the `split`th stretch of K.
__device__ __forceinline__ float4 load_sums(const float* here, int split) {
  if constexpr (NUM_SPLITS == 1) return *reinterpret_cast<const float4*>(here);
  u32 there;
  float4 v;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(here)), "r"(split));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(there));
  return v;
}

__device__ __forceinline__ float to_float(u16 bits) {
  float value;
  if constexpr (IS_HALF) asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  else value = __uint_as_float(u32{bits} << 16);
  return value;
}

__device__ __forceinline__ u32 to_pair(float low, float high) {
  u32 pair;
  if constexpr (IS_HALF) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ float4 to_floats(uint2 pairs) {
  return make_float4(to_float(pairs.x & 0xFFFF), to_float(pairs.x >> 16), to_float(pairs.y & 0xFFFF),
                     to_float(pairs.y >> 16));
}

__device__ __forceinline__ void add(float4& sum, float4 more) {
  sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
}

__device__ __forceinline__ float activate(float gate) {
  if constexpr (ACT == SILU) return __fdividef(gate, 1.0f + __expf(-gate));
  // 0.5 (1 + tanh u) is the logistic function of 2 u.
  else if constexpr (ACT == GELU_TANH)
    return __fdividef(gate, 1.0f + __expf(-1.5957691216057308f * (gate + 0.044715f * gate * gate * gate)));
  else return 0.5f * gate * (1.0f + erff(gate * 0.7071067811865476f));
}

extern "C" __global__ void __launch_bounds__(NUM_THREADS, MIN_BLOCKS)
    cluster_kernel(const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap x_map, const u16* bias,
                   const u16* residual, void* out, int num_rows, int num_outputs, int num_steps) {
  asm volatile("griddepcontrol.launch_dependents;");
  extern __shared__ char dynamic[];
  __shared__ alignas(8) u64 full[NUM_STAGES], empty[NUM_STAGES];
  const u32 w_ring = (shared_address(dynamic) + 1023) & ~1023u, x_ring = w_ring + NUM_STAGES * W_BYTES;
  const int tile = blockIdx.x, first_row = blockIdx.y * X_ROWS, split = blockIdx.z;
  const int first = split * num_steps / NUM_SPLITS, count = (split + 1) * num_steps / NUM_SPLITS - first;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool is_producer = threadIdx.x == NUM_CONSUMERS;

  const auto copy_weight = [&](int slot, int i) {
    const u32 to = w_ring + slot * W_BYTES, barrier = shared_address(&full[slot]);
    const int k = (first + i) * STEP, row = tile * W_ROWS;
    if constexpr (IS_GATED) copy_gated(w_map, to, barrier, k, row / 16, EVICT_FIRST);
    else copy_rows(w_map, to, barrier, k, row, EVICT_FIRST);
  };
  const auto copy_input = [&](int slot, int i) {
    copy_rows(x_map, x_ring + slot * X_BYTES, shared_address(&full[slot]), (first + i) * STEP, first_row, EVICT_LAST);
  };

  if (is_producer) {
    for (int i = 0; i < NUM_STAGES; ++i) {
      init_barrier(shared_address(&full[i]), 1);
      init_barrier(shared_address(&empty[i]), 2);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    for (int i = 0; i < NUM_STAGES && i < count; ++i) {
      expect_bytes(shared_address(&full[i]), W_BYTES + X_BYTES);
      copy_weight(i, i);
    }
  }
  __syncthreads();
  asm volatile("griddepcontrol.wait;" ::: "memory");

  if (is_producer) {
    for (int i = 0; i < NUM_STAGES && i < count; ++i) copy_input(i, i);
    for (int i = NUM_STAGES; i < count; ++i) {
      const int slot = i % NUM_STAGES;
      wait_for(shared_address(&empty[slot]), (i / NUM_STAGES - 1) & 1);
      expect_bytes(shared_address(&full[slot]), W_BYTES + X_BYTES);
      copy_weight(slot, i);
      copy_input(slot, i);
    }
  }

  float* sums = reinterpret_cast<float*>(dynamic + (w_ring - shared_address(dynamic)));  // [X_ROWS, SUM_STRIDE]
  // Every thread finishes four columns of some of the rows.
  constexpr int LANES = OUT_COLUMNS / 4, AT_ONCE = NUM_CONSUMERS / LANES;
  constexpr int NUM_ROWS = (X_ROWS + NUM_SPLITS - 1) / NUM_SPLITS, NUM_TURNS = (NUM_ROWS + AT_ONCE - 1) / AT_ONCE;
  const int column = threadIdx.x % LANES * 4, n = tile * OUT_COLUMNS + column;
  const int begin = split * X_ROWS / NUM_SPLITS + threadIdx.x / LANES;
  const int end = min((split + 1) * X_ROWS / NUM_SPLITS, num_rows - first_row);
  const bool is_finishing = threadIdx.x < LANES * AT_ONCE && n < num_outputs;
  const auto place = [&](int row) { return static_cast<long long>(first_row + row) * num_outputs + n; };
  uint2 base[HAS_RESIDUAL ? NUM_TURNS : 1];

  if (warp < NUM_CONSUMERS / 32) {
    float acc[ROW_BLOCKS][GROUP_COLUMNS / 2];
    const int group = warp / 4;
    const int group_row = SPLITS_COLUMNS ? 0 : group * ROW_BLOCKS * 64;
    const int group_column = SPLITS_COLUMNS ? group * GROUP_COLUMNS : 0;
    for (int i = 0; i < count; ++i) {
      const int slot = i % NUM_STAGES;
      wait_for(shared_address(&full[slot]), (i / NUM_STAGES) & 1);
      const u64 w = matrix_descriptor(w_ring + slot * W_BYTES + group_column * LINE);
      const u64 x = matrix_descriptor(x_ring + slot * X_BYTES + group_row * LINE);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int k = 0; k < STEP / 16; ++k)
#pragma unroll
        for (int b = 0; b < ROW_BLOCKS; ++b)
          wgmma(acc[b], x + (b * 64 * LINE >> 4) + (k * 32 >> 4), w + (k * 32 >> 4), i + k > 0);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(NUM_AHEAD) : "memory");
      const int done = i - NUM_AHEAD;
      // Nobody waits for slots that nothing more is copied to.
      if (done >= 0 && done + NUM_STAGES < count && threadIdx.x % 128 == 0)
        arrive(shared_address(&empty[done % NUM_STAGES]));
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    sync_consumers();  // both have read the ring, which the sums overwrite
#pragma unroll
    for (int b = 0; b < ROW_BLOCKS; ++b) {
      const int m = group_row + b * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
      for (int i = 0; i < GROUP_COLUMNS / 2; i += 2)
        if (X_ROWS % 64 == 0 || m + i % 4 * 4 < X_ROWS)
          *reinterpret_cast<float2*>(&sums[(m + i % 4 * 4) * SUM_STRIDE + group_column + i / 4 * 8 + lane % 4 * 2]) =
              make_float2(acc[b][i], acc[b][i + 1]);
    }
    if constexpr (HAS_RESIDUAL)
#pragma unroll
      for (int turn = 0; turn < NUM_TURNS; ++turn)
        if (is_finishing && begin + turn * AT_ONCE < end)
          base[turn] = *reinterpret_cast<const uint2*>(residual + place(begin + turn * AT_ONCE));
    if constexpr (NUM_SPLITS == 1) sync_consumers();
  }
  sync_cluster();

  if (is_finishing) {
    const int from = IS_GATED ? column / 8 * 16 + column % 8 : column;
    float4 gate_bias = {}, up_bias = {};
    if constexpr (HAS_BIAS) {
      gate_bias = to_floats(*reinterpret_cast<const uint2*>(bias + n));
      if constexpr (IS_GATED) up_bias = to_floats(*reinterpret_cast<const uint2*>(bias + num_outputs + n));
    }
#pragma unroll
    for (int turn = 0; turn < NUM_TURNS; ++turn) {
      const int row = begin + turn * AT_ONCE;
      if (row >= end) break;
      float4 y = gate_bias, up = up_bias, parts[NUM_SPLITS];
#pragma unroll
      for (int i = 0; i < NUM_SPLITS; ++i) parts[i] = load_sums(&sums[row * SUM_STRIDE + from], i);
#pragma unroll
      for (int i = 0; i < NUM_SPLITS; ++i) add(y, parts[i]);
      if constexpr (IS_GATED) {
        add(up, load_sums(&sums[row * SUM_STRIDE + from + 8], 0));
        y.x = activate(y.x) * up.x, y.y = activate(y.y) * up.y;
        y.z = activate(y.z) * up.z, y.w = activate(y.w) * up.w;
      }
      if constexpr (HAS_RESIDUAL) add(y, to_floats(base[turn]));
      if constexpr (OUT_FLOAT) *reinterpret_cast<float4*>(static_cast<float*>(out) + place(row)) = y;
      else *reinterpret_cast<uint2*>(static_cast<u16*>(out) + place(row)) =
          make_uint2(to_pair(y.x, y.y), to_pair(y.z, y.w));
    }
  }
  sync_cluster();  // nobody leaves while its sums may be read
}
