// What `kernels.cu` needs of CUDA to be plain C++: included before it, it makes every kernel an
// ordinary function that does the share of one thread. Which one is said in the four variables.
#include <cmath>

#define __global__
#define __device__ static inline

struct Index {
    unsigned x;
};
extern "C" {
Index blockIdx, threadIdx, blockDim, gridDim;
}

__device__ float __fsqrt_rn(float a) { return std::sqrt(a); }
__device__ float __fadd_rn(float a, float b) { return a + b; }
__device__ float __fmul_rn(float a, float b) { return a * b; }
__device__ float __fdiv_rn(float a, float b) { return a / b; }
__device__ double __dmul_rn(double a, double b) { return a * b; }
