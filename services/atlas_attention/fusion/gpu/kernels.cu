// Blending, fusion and opening, with the integer arithmetic of `blending`, `kernels` and `released`:
// what those modules say about ranges and rounding holds here, and results are equal to the bit.
//
// Every kernel covers its items with a grid-strided loop, so the result does not depend on the number
// of threads, and no thread reads what another one writes in the same launch. Nothing is included,
// and the few names of CUDA are easily defined: the tests compile this very file as C++.
//
// Integer arguments are 64 bits wide. Constants come from Python as -D options (`gpu.device`).
// Where IEEE rounding must not be left to compiler flags, intrinsics that end in _rn are used.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define FOR_EACH(i, count)                                                                       \
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < (count);                        \
         i += gridDim.x * (i64)blockDim.x)

// --- blending ------------------------------------------------------------------------------------

// The weight of one window at one of its voxels: the product of its shares per axis, rounded down.
__device__ u32 weight_of(double z, double y, double x) {
    const u32 weight = (u32)__dmul_rn(__dmul_rn(__dmul_rn(z, y), (double)WEIGHT_LEVELS), x);
    return weight < 255 ? weight : 255;
}

// Index of voxel (z, y, x) of the grid in a ring [slot, y, x] of `depth` slices; -1 beyond the grid.
__device__ i64 in_ring(i64 z, i64 y, i64 x, i64 slices, i64 depth, i64 rows, i64 columns) {
    if (z < 0 || z >= slices || y < 0 || y >= rows || x < 0 || x >= columns) return -1;
    return (z % depth * rows + y) * columns + x;
}

// Adds the weights of one window to the ring `weights` [slot, y, x].
//
// shares_*: the window's shares along each axis, one per voxel of the patch; start_*: its first
// voxel on the grid, negative if it extends over the edge; size_*: of the patch.
extern "C" __global__ void add_weights(const double *shares_z, const double *shares_y,
                                       const double *shares_x, i64 start_z, i64 start_y,
                                       i64 start_x, i64 size_z, i64 size_y, i64 size_x, i64 slices,
                                       i64 depth, i64 rows, i64 columns, u16 *weights) {
    FOR_EACH(i, size_z * size_y * size_x) {
        const u32 x = (u32)i % (u32)size_x, row = (u32)i / (u32)size_x;
        const u32 y = row % (u32)size_y, z = row / (u32)size_y;
        const i64 to = in_ring(start_z + z, start_y + y, start_x + x, slices, depth, rows, columns);
        if (to >= 0) weights[to] += weight_of(shares_z[z], shares_y[y], shares_x[x]);
    }
}

// Adds one model's answer `soft` [organ, z, y, x] of one window, times its weights, to the ring
// `sums` [organ, slot, y, x]; other arguments as in `add_weights`.
extern "C" __global__ void add_window(const u8 *soft, i64 organs, const double *shares_z,
                                      const double *shares_y, const double *shares_x, i64 start_z,
                                      i64 start_y, i64 start_x, i64 size_z, i64 size_y, i64 size_x,
                                      i64 slices, i64 depth, i64 rows, i64 columns, u16 *sums) {
    const i64 patch = size_z * size_y * size_x, ring = depth * rows * columns;
    FOR_EACH(i, patch) {
        const u32 x = (u32)i % (u32)size_x, row = (u32)i / (u32)size_x;
        const u32 y = row % (u32)size_y, z = row / (u32)size_y;
        const i64 to = in_ring(start_z + z, start_y + y, start_x + x, slices, depth, rows, columns);
        if (to < 0) continue;
        const u32 weight = weight_of(shares_z[z], shares_y[y], shares_x[x]);
        for (i64 c = 0; c < organs; ++c) {
            const u8 v = soft[c * patch + i];
            if (v) sums[c * ring + to] += weight * v;
        }
    }
}

// Normalises `count` slices from `start` on into `soft` [channel, z, y, x], and clears them in both
// rings. `plane` is rows times columns; a channel is a model's organ.
extern "C" __global__ void read_slices(u16 *sums, u16 *weights, i64 channels, i64 start, i64 count,
                                       i64 depth, i64 plane, u8 *soft) {
    FOR_EACH(i, count * plane) {
        const i64 from = (start + i / plane) % depth * plane + i % plane;
        const u32 weight = weights[from];
        for (i64 c = 0; c < channels; ++c) {
            u16 *sum = sums + c * depth * plane + from;
            const float doubled = (float)(2u * *sum + weight);
            soft[c * count * plane + i] =
                *sum ? (u8)(int)__fdiv_rn(doubled, (float)(2u * weight)) : 0;
            *sum = 0;
        }
        weights[from] = 0;
    }
}

// --- fusion --------------------------------------------------------------------------------------

// RUN consecutive bytes; four of them as one word, which must be aligned.
template <int RUN>
__device__ void load(const u8 *from, u32 (&v)[RUN]) {
    const u32 word = RUN == 4 ? *(const u32 *)from : *from;
    for (int k = 0; k < RUN; ++k) v[k] = word >> 8 * k & 255;
}

template <int RUN>
__device__ void store(const u32 (&v)[RUN], u8 *to) {
    u32 word = 0;
    for (int k = 0; k < RUN; ++k) word |= v[k] << 8 * k;
    if (RUN == 4)
        *(u32 *)to = word;
    else
        *to = (u8)word;
}

// Eq. 1-4 for RUN voxels from `at` on; arguments as in `fuse`.
template <int RUN>
__device__ void fuse_run(const u8 *soft, const u16 *entropy, float deviation, int models,
                         int organs, i64 voxels, bool gated, i64 at, u8 *attention, u8 *mean,
                         u8 *label) {
    const u32 half_sum = 255 * models / 2;
    const float scale = __fdiv_rn(1.0f, (float)models);
    const float offset = __fdiv_rn((float)models - 0.5f, 2.0f * models);
    u32 claims[RUN] = {};  // how many organs claim the voxel (Eq. 3), and which did last
    u32 claimer[RUN] = {};
    u32 best[RUN] = {};    // larger sum first, lower channel first
    for (int c = 0; c < organs; ++c) {
        const i64 here = c * voxels + at;
        u32 total[RUN] = {}, squares[RUN] = {}, peak[RUN] = {}, term[RUN] = {};
        u32 seen = 0;
        for (int n = 0; n < models; ++n) {
            u32 v[RUN];
            load<RUN>(soft + (i64)n * organs * voxels + here, v);
            for (int k = 0; k < RUN; ++k) {
                if (v[k] == 0) continue;
                seen = 1;
                total[k] += v[k];
                squares[k] += v[k] * v[k];
                peak[k] = v[k] > peak[k] ? v[k] : peak[k];
                term[k] += entropy[v[k]];
            }
        }
        u32 average[RUN] = {}, shown[RUN] = {};
        if (seen) {
            u32 gate[RUN] = {};
            if (gated) load<RUN>(attention + here, gate);
            for (int k = 0; k < RUN; ++k) {
                // Below 2^24, so float holds it.
                const float spread = (float)(models * squares[k] - total[k] * total[k]);
                u32 inconsistency = (u32)__fmul_rn(__fsqrt_rn(spread), deviation);
                if (gated && !(gate[k] & KEEP_INCONSISTENCY)) inconsistency = 0;
                if (gated && !(gate[k] & KEEP_UNCERTAINTY)) term[k] = 0;
                // Without Eq. 3 at most 118, so the highest bit is free to mark who claims.
                shown[k] = (term[k] + inconsistency + HALF_STEP) >> FRACTION_BITS;
                average[k] = (u32)__fadd_rn(__fmul_rn((float)total[k], scale), offset);
                const bool claim = gated ? total[k] > half_sum : peak[k] >= HALF_BYTE;
                if (claim) {
                    shown[k] |= HALF_BYTE;
                    claims[k] += 1;
                    claimer[k] = c;
                }
                const u32 ranked = total[k] << 8 | (255 - c);
                best[k] = ranked > best[k] ? ranked : best[k];
            }
        }
        store<RUN>(shown, attention + here);
        store<RUN>(average, mean + here);
    }
    u32 named[RUN];
    for (int k = 0; k < RUN; ++k) {
        named[k] = best[k] >> 8 > half_sum ? 256 - (best[k] & 255) : 0;
        if (claims[k] == 0) continue;
        // Eq. 3 is a whole number of steps of the byte, so it can be added after the rounding, now
        // that all organs are known. The marks go.
        const int overlap = claims[k] > 1 ? ATTENTION_LEVELS : 0;
        const int first = claims[k] > 1 ? 0 : claimer[k];
        for (int c = first; c <= (int)claimer[k]; ++c) {
            u8 &byte = attention[c * voxels + at + k];
            if (byte & HALF_BYTE) byte = (u8)((byte & ~HALF_BYTE) + overlap);
        }
    }
    store<RUN>(named, label + at);
}

// soft: [model, organ, voxel]; entropy: one model's share of Eq. 2 per byte; deviation: fixed point
// per root of N·Σv² − (Σv)²; gated: `attention` holds the gates of reading `released`.
// Written: attention, mean [organ, voxel], label [voxel].
extern "C" __global__ void fuse(const u8 *soft, const u16 *entropy, float deviation, i64 models,
                                i64 organs, i64 voxels, i64 gated, u8 *attention, u8 *mean,
                                u8 *label) {
    // A warp that loads words has four times as many bytes in flight as one that loads bytes.
    if (((u64)soft | (u64)attention | (u64)mean | (u64)label | (u64)voxels) % 4 == 0) {
        FOR_EACH(i, voxels / 4)
            fuse_run<4>(soft, entropy, deviation, models, organs, voxels, gated, 4 * i, attention,
                        mean, label);
    } else {
        FOR_EACH(i, voxels)
            fuse_run<1>(soft, entropy, deviation, models, organs, voxels, gated, i, attention, mean,
                        label);
    }
}

// --- reading `released` --------------------------------------------------------------------------

// Which terms are above their thresholds: soft [model, voxel of an organ] to gates [voxel of an
// organ]; entropy: one model's share per byte, in units of 2^-28.
extern "C" __global__ void mark(const u8 *soft, const int *entropy, i64 least_entropy,
                                i64 least_spread, i64 models, i64 count, u8 *gates) {
    FOR_EACH(i, count) {
        int total = 0, squares = 0, term = 0;
        for (i64 n = 0; n < models; ++n) {
            const int v = soft[n * count + i];
            total += v;
            squares += v * v;
            term += entropy[v];
        }
        const int spread = (int)models * squares - total * total;
        gates[i] = (spread > least_spread ? KEEP_INCONSISTENCY : 0) |
                   (term > least_entropy ? KEEP_UNCERTAINTY : 0);
    }
}

// Erodes or dilates every bit along one axis by REACH on either side; beyond the axis nothing is
// set. `length` is the axis's, `stride` the distance of neighbours along it.
extern "C" __global__ void filter_axis(const u8 *source, i64 count, i64 length, i64 stride,
                                       i64 erode, u8 *target) {
    FOR_EACH(i, count) {
        const i64 at = i / stride % length;
        u8 kept = source[i];
        for (int k = -REACH; k <= REACH; ++k) {
            const u8 other = 0 <= at + k && at + k < length ? source[i + k * stride] : 0;
            kept = erode ? kept & other : kept | other;
        }
        target[i] = kept;
    }
}
