// Products of 17 to 256 rows on Hopper with what Triton 3.6 has no words for: tiles of any width, so that their number
// suits that of the multiprocessors, and sums of several blocks added up out of each other's shared memory.
//
// out = act(x Wᵀ + bias) + residual. A block computes X_ROWS rows of the input against W_ROWS rows of the weight: one
// warp copies both, a step of 64 along K at a time, through a ring in shared memory (tensor memory accelerator, TMA),
// two warpgroups multiply. NUM_SPLITS blocks that each take a stretch of K of the same outputs form a cluster; each
// then adds up a part of the rows, in the order of K: the result does not depend on who was first. Copies of the weight
// begin before the kernel before has ended (programmatic dependent launch).
//
// With HAS_NORM, for up to 64 rows, the input's RMSNorm is taken along: the warps read the input into registers,
// multiply it by the norm's weight, sum up its squares on the way, and hand it to the tensor cores from there; a row's
// factor, 1 / sqrt(mean of squares + eps), comes last: out = act(factor * (x norm) Wᵀ + bias) + residual.
//
// Compiled at run time with these macros (cluster.py): X_ROWS, W_ROWS, NUM_STAGES, X_STAGES, NUM_SPLITS, ACT, HAS_BIAS,
// HAS_RESIDUAL, HAS_NORM, OUT_FLOAT, IS_HALF, MIN_BLOCKS; and wgmma(acc, a, b, keeps), of 64 x GROUP_COLUMNS x 16.
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
constexpr int W_BYTES = W_ROWS * LINE, X_BYTES = X_ROWS * LINE, NORM_BYTES = HAS_NORM ? LINE : 0;
constexpr int NUM_CONSUMERS = 256, NUM_THREADS = NUM_CONSUMERS + 32;
constexpr bool SPLITS_COLUMNS = X_ROWS <= 64;  // between the warpgroups; else they split the rows
constexpr int ROW_BLOCKS = X_ROWS <= 128 ? 1 : X_ROWS / 128;  // of 64 rows, of a warpgroup
static_assert(GROUP_COLUMNS == (SPLITS_COLUMNS ? W_ROWS / 2 : W_ROWS));
static_assert(!IS_GATED || NUM_SPLITS == 1);
static_assert(X_STAGES <= NUM_STAGES);
static_assert(!HAS_NORM || SPLITS_COLUMNS);
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

__device__ __forceinline__ float load_sum(const float* here, int split) {
  if constexpr (NUM_SPLITS == 1) return *here;
  u32 there;
  float value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(here)), "r"(split));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there));
  return value;
}

// A warp's 16 rows of 16 columns, as wgmma takes them: of rows lane / 4 and 8 below, columns lane % 4 * 2 and 8 on.
__device__ __forceinline__ void load_matrix(u32 (&a)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(address) : "memory");
}

// The products of a warp's rows with its first and with its last eight, added up: the tensor cores' way to square.
__device__ __forceinline__ void add_squares(float (&products)[2][4], const u32 (&a)[4]) {
#define ADD_PRODUCTS(KIND)                                                                                        \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, " \
               "{%8, %9}, {%0, %1, %2, %3};"                                                                      \
               : "+f"(products[i][0]), "+f"(products[i][1]), "+f"(products[i][2]), "+f"(products[i][3])           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[i]), "r"(a[i + 2]))
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if constexpr (IS_HALF) ADD_PRODUCTS("f16");
    else ADD_PRODUCTS("bf16");
#undef ADD_PRODUCTS
}

__device__ __forceinline__ u32 load_pair(u32 address) {
  u32 pair;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(pair) : "r"(address) : "memory");
  return pair;
}

__device__ __forceinline__ u32 multiply(u32 pair, u32 other) {
  u32 product;
  if constexpr (IS_HALF) asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(pair), "r"(other));
  else asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(pair), "r"(other));
  return product;
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

__device__ __forceinline__ void scale_and_add(float4& sum, float factor, float4 more) {
  sum.x = fmaf(sum.x, factor, more.x), sum.y = fmaf(sum.y, factor, more.y);
  sum.z = fmaf(sum.z, factor, more.z), sum.w = fmaf(sum.w, factor, more.w);
}

__device__ __forceinline__ float activate(float gate) {
  if constexpr (ACT == SILU) return __fdividef(gate, 1.0f + __expf(-gate));
  // 0.5 (1 + tanh u) is the logistic function of 2 u.
  else if constexpr (ACT == GELU_TANH)
    return __fdividef(gate, 1.0f + __expf(-1.5957691216057308f * (gate + 0.044715f * gate * gate * gate)));
  else return 0.5f * gate * (1.0f + erff(gate * 0.7071067811865476f));
}

extern "C" __global__ void __launch_bounds__(NUM_THREADS, MIN_BLOCKS)
    cluster_kernel(const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap x_map,
                   const __grid_constant__ TensorMap norm_map, const u16* bias, const u16* residual, void* out,
                   int num_rows, int num_copied, int num_outputs, int num_steps, float mean_factor, float eps) {
  asm volatile("griddepcontrol.launch_dependents;");
  extern __shared__ char dynamic[];
  __shared__ alignas(8) u64 full[NUM_STAGES], empty[NUM_STAGES];
  const u32 w_ring = (shared_address(dynamic) + 1023) & ~1023u, x_ring = w_ring + NUM_STAGES * W_BYTES;
  const u32 norm_ring = x_ring + X_STAGES * X_BYTES;
  const int tile = blockIdx.x, first_row = blockIdx.y * X_ROWS, split = blockIdx.z;
  const int first = split * num_steps / NUM_SPLITS, count = (split + 1) * num_steps / NUM_SPLITS - first;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool is_producer = threadIdx.x == NUM_CONSUMERS;

  // A step's barrier stands for its weight and its input, which have rings of their own. Of the input `num_copied` rows
  // are copied, no more than there are, as the copy engine takes long to fill in zeros; what lies below them is never
  // stored.
  const auto copy_weight = [&](int i) {
    const int slot = i % NUM_STAGES, k = (first + i) * STEP, row = tile * W_ROWS;
    const u32 to = w_ring + slot * W_BYTES, barrier = shared_address(&full[slot]);
    expect_bytes(barrier, W_BYTES + num_copied * LINE + NORM_BYTES);
    if constexpr (IS_GATED) copy_gated(w_map, to, barrier, k, row / 16, EVICT_FIRST);
    else copy_rows(w_map, to, barrier, k, row, EVICT_FIRST);
  };
  const auto copy_input = [&](int i) {
    const int slot = i % X_STAGES, k = (first + i) * STEP;
    const u32 barrier = shared_address(&full[i % NUM_STAGES]);
    copy_rows(x_map, x_ring + slot * X_BYTES, barrier, k, first_row, EVICT_LAST);
    if constexpr (HAS_NORM) copy_rows(norm_map, norm_ring + slot * NORM_BYTES, barrier, k, 0, EVICT_LAST);
  };

  if (is_producer) {
    for (int i = 0; i < NUM_STAGES; ++i) {
      init_barrier(shared_address(&full[i]), 1);
      init_barrier(shared_address(&empty[i]), HAS_NORM ? NUM_CONSUMERS / 32 : 2);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    for (int i = 0; i < NUM_STAGES && i < count; ++i) copy_weight(i);
    asm volatile("prefetch.tensormap [%0];" ::"l"(&x_map) : "memory");
  }
  __syncthreads();
  asm volatile("griddepcontrol.wait;" ::: "memory");

  if (is_producer) {
    for (int i = 0; i < X_STAGES && i < count; ++i) copy_input(i);
    for (int i = 0; i + X_STAGES < count; ++i) {
      wait_for(shared_address(&empty[i % NUM_STAGES]), (i / NUM_STAGES) & 1);
      if (i + NUM_STAGES < count) copy_weight(i + NUM_STAGES);
      copy_input(i + X_STAGES);
    }
  }

  float* sums = reinterpret_cast<float*>(dynamic + (w_ring - shared_address(dynamic)));  // [X_ROWS, SUM_STRIDE]
  float* square_sums = sums + X_ROWS * SUM_STRIDE;                                       // [X_ROWS, warpgroups]
  // Every thread finishes four columns of some of the rows.
  constexpr int LANES = OUT_COLUMNS / 4, AT_ONCE = NUM_CONSUMERS / LANES;
  constexpr int NUM_ROWS = (X_ROWS + NUM_SPLITS - 1) / NUM_SPLITS, NUM_TURNS = (NUM_ROWS + AT_ONCE - 1) / AT_ONCE;
  const int column = threadIdx.x % LANES * 4, n = tile * OUT_COLUMNS + column;
  const int begin = split * X_ROWS / NUM_SPLITS + threadIdx.x / LANES;
  const int end = min((split + 1) * X_ROWS / NUM_SPLITS, num_rows - first_row);
  const bool is_finishing = threadIdx.x < LANES * AT_ONCE && n < num_outputs;
  const auto place = [&](int row) { return static_cast<long long>(first_row + row) * num_outputs + n; };
  // What is added at the end is asked for first.
  uint2 base[NUM_TURNS], bias_pairs[2];
  if (is_finishing) {
    if constexpr (HAS_RESIDUAL)
#pragma unroll
      for (int turn = 0; turn < NUM_TURNS; ++turn)
        if (begin + turn * AT_ONCE < end)
          base[turn] = *reinterpret_cast<const uint2*>(residual + place(begin + turn * AT_ONCE));
    if constexpr (HAS_BIAS) bias_pairs[0] = *reinterpret_cast<const uint2*>(bias + n);
    if constexpr (HAS_BIAS && IS_GATED) bias_pairs[1] = *reinterpret_cast<const uint2*>(bias + num_outputs + n);
  }

  if (warp < NUM_CONSUMERS / 32) {
    float acc[ROW_BLOCKS][GROUP_COLUMNS / 2];
    const int group = warp / 4;
    const int group_row = SPLITS_COLUMNS ? 0 : group * ROW_BLOCKS * 64;
    const int group_column = SPLITS_COLUMNS ? group * GROUP_COLUMNS : 0;
    float squares[2][4] = {};
    if constexpr (!HAS_NORM) {
      for (int i = 0; i < count; ++i) {
        const int slot = i % NUM_STAGES;
        wait_for(shared_address(&full[slot]), (i / NUM_STAGES) & 1);
        const u64 w = matrix_descriptor(w_ring + slot * W_BYTES + group_column * LINE);
        const u64 x = matrix_descriptor(x_ring + i % X_STAGES * X_BYTES + group_row * LINE);
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
        if (done >= 0 && done + X_STAGES < count && threadIdx.x % 128 == 0)
          arrive(shared_address(&empty[done % NUM_STAGES]));
      }
    } else {
      // Half a step is multiplied while the other is made. The warpgroups, which have the same rows, begin with different
      // halves; each squares its second. Lane l names line l % 16 of the warp's and piece l / 16 of two.
      const u32 line = warp % 4 * 16 + lane % 16;
      const u32 place = line * LINE + (lane / 16 ^ line % 8) * 16;
      for (int i = 0; i < count; ++i) {
        const int slot = i % NUM_STAGES;
        wait_for(shared_address(&full[slot]), (i / NUM_STAGES) & 1);
        const u64 w = matrix_descriptor(w_ring + slot * W_BYTES + group_column * LINE);
        const u32 x = x_ring + i % X_STAGES * X_BYTES + place;
        const u32 norm = norm_ring + i % X_STAGES * NORM_BYTES + lane % 4 * 4;
        u32 a[STEP / 16][4], weights[STEP / 16][2];
#pragma unroll
        for (int j = 0; j < STEP / 16; ++j) {
          const int k = j ^ group * 2;
          load_matrix(a[j], x ^ k * 32);
          weights[j][0] = load_pair(norm + k * 32), weights[j][1] = load_pair(norm + k * 32 + 16);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int j = half * 2; j < half * 2 + 2; ++j) {
            if (half == 1) add_squares(squares, a[j]);
#pragma unroll
            for (int r = 0; r < 4; ++r) a[j][r] = multiply(a[j][r], weights[j][r / 2]);
          }
          asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
          for (int j = half * 2; j < half * 2 + 2; ++j) wgmma(acc[0], a[j], w + ((j ^ group * 2) * 32 >> 4), i + j > 0);
          asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (i + X_STAGES < count && lane == 0) arrive(shared_address(&empty[slot]));
      }
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
    if constexpr (HAS_NORM) {
      // A lane has two columns of the products of rows lane / 4 and 8 below; one is a square where the column is the row.
      const int m = warp % 4 * 16 + lane / 4;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (lane % 4 == lane / 8 && m + i * 8 < X_ROWS)
          square_sums[(m + i * 8) * 2 + group] = lane / 4 % 2 ? squares[i][i * 2 + 1] : squares[i][i * 2];
    }
    if constexpr (NUM_SPLITS == 1) sync_consumers();
  }
  sync_cluster();

  if (is_finishing) {
    const int from = IS_GATED ? column / 8 * 16 + column % 8 : column;
    float4 gate_bias = {}, up_bias = {};
    if constexpr (HAS_BIAS) gate_bias = to_floats(bias_pairs[0]);
    if constexpr (HAS_BIAS && IS_GATED) up_bias = to_floats(bias_pairs[1]);
    // What comes from other multiprocessors is asked for all at once.
    constexpr int GATHERED = NUM_SPLITS > 1 ? NUM_TURNS : 1;
#pragma unroll
    for (int gathered = 0; gathered < NUM_TURNS; gathered += GATHERED) {
      float4 parts[GATHERED][NUM_SPLITS];
      float square_parts[GATHERED][NUM_SPLITS * 2];
#pragma unroll
      for (int g = 0; g < GATHERED; ++g) {
        const int row = min(begin + (gathered + g) * AT_ONCE, X_ROWS - 1);
#pragma unroll
        for (int i = 0; i < NUM_SPLITS; ++i) parts[g][i] = load_sums(&sums[row * SUM_STRIDE + from], i);
        if constexpr (HAS_NORM)
#pragma unroll
          for (int i = 0; i < NUM_SPLITS * 2; ++i)
            square_parts[g][i] = load_sum(&square_sums[row * 2 + i % 2], i / 2);
      }
#pragma unroll
      for (int g = 0; g < GATHERED; ++g) {
        const int turn = gathered + g, row = begin + turn * AT_ONCE;
        if (row >= end) break;
        float4 y = HAS_NORM ? float4{} : gate_bias, up = HAS_NORM ? float4{} : up_bias;
#pragma unroll
        for (int i = 0; i < NUM_SPLITS; ++i) add(y, parts[g][i]);
        if constexpr (IS_GATED) add(up, load_sums(&sums[row * SUM_STRIDE + from + 8], 0));
        if constexpr (HAS_NORM) {
          float square_sum = 0.0f;
#pragma unroll
          for (int i = 0; i < NUM_SPLITS * 2; ++i) square_sum += square_parts[g][i];
          const float factor = rsqrtf(fmaf(square_sum, mean_factor, eps));
          scale_and_add(y, factor, gate_bias);
          scale_and_add(up, factor, up_bias);
        }
        if constexpr (IS_GATED) {
          y.x = activate(y.x) * up.x, y.y = activate(y.y) * up.y;
          y.z = activate(y.z) * up.z, y.w = activate(y.w) * up.w;
        }
        if constexpr (HAS_RESIDUAL) add(y, to_floats(base[turn]));
        if constexpr (OUT_FLOAT) *reinterpret_cast<float4*>(static_cast<float*>(out) + place(row)) = y;
        else *reinterpret_cast<uint2*>(static_cast<u16*>(out) + place(row)) =
            make_uint2(to_pair(y.x, y.y), to_pair(y.z, y.w));
      }
    }
  }
  sync_cluster();  // nobody leaves while its sums may be read
}
