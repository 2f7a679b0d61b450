// mesh2sdf and voxelize on CUDA. Tensors come as raw pointers and scalars as 64-bit integers, one by one, as torch can
// start Metal kernels in no other way; here they are packed into what the kernels share.
#include <cuda_runtime.h>
#include "launch.h"
#include "mesh2sdf_gpu.h"

namespace {

using imn::Integer;
using imn::Shape;
using imn::Thread;

__device__ Thread here() { return {Integer(blockIdx.x), int(threadIdx.x)}; }

template <typename T>
__global__ void __launch_bounds__(imn::GROUP)
    prepare(const T* vertices, const Integer* faces, const T* slack, T* triangles, T* balls, int* first, Integer batch,
            Integer vertex_count, Integer face_count) {
    imn::prepare(imn::Meshes<T>{vertices, faces, batch, vertex_count, face_count}, slack,
                 imn::PreparedOutput<T>{triangles, balls, first}, here());
}

template <typename T>
__global__ void __launch_bounds__(imn::GROUP)
    cross_faces(const T* vertices, const Integer* faces, const T* reach, int* changes, Integer batch,
                Integer vertex_count, Integer face_count, Integer x, Integer y, Integer z, Integer normalised) {
    imn::cross_face(imn::Meshes<T>{vertices, faces, batch, vertex_count, face_count}, reach, changes,
                    imn::WindingGrid{Shape{int(x), int(y), int(z)}, normalised != 0}, here());
}

__global__ void __launch_bounds__(imn::GROUP) accumulate(int* changes, Integer count, Integer size) {
    imn::accumulate_column(changes, count, size, here());
}

template <typename T>
__global__ void __launch_bounds__(imn::GROUP, sizeof(T) == 4 ? 3 : 1)  // groups at once: as many as nothing spills for
    solve(const T* triangles, const T* balls, const T* slack, const int* valid, T* sdf, int* face, Integer face_count,
          Integer x, Integer y, Integer z) {
    IMN_SHARED_VARIABLE(imn::Shared<T>, shared);
    imn::solve_block(imn::Faces<T>{triangles, balls, face_count}, slack, valid,
                     imn::Output<T>{sdf, face, Shape{int(x), int(y), int(z)}}, here(), &shared);
}

template <typename T>
__global__ void __launch_bounds__(imn::GROUP)
    differentiate(const T* grad, const T* triangles, const Integer* faces, const int* first, const T* slack,
                  const T* sdf, const int* face, T* result, Integer batch, Integer vertex_count, Integer face_count,
                  Integer x, Integer y, Integer z) {
    imn::differentiate_run(imn::GradientInput<T>{grad, triangles, faces, first, slack, sdf, face, batch, vertex_count,
                                                 face_count, Shape{int(x), int(y), int(z)}},
                           result, here());
}

}  // namespace

IMN_EXPORT(accumulate, accumulate, imn::GROUP)
IMN_EXPORT(prepare_float, prepare<float>, imn::GROUP)
IMN_EXPORT(prepare_double, prepare<double>, imn::GROUP)
IMN_EXPORT(cross_faces_float, cross_faces<float>, imn::GROUP)
IMN_EXPORT(cross_faces_double, cross_faces<double>, imn::GROUP)
IMN_EXPORT(solve_float, solve<float>, imn::GROUP)
IMN_EXPORT(solve_double, solve<double>, imn::GROUP)
IMN_EXPORT(differentiate_float, differentiate<float>, imn::GROUP)
IMN_EXPORT(differentiate_double, differentiate<double>, imn::GROUP)
