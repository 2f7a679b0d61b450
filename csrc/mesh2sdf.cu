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

__global__ void __launch_bounds__(imn::GROUP)
    clear(int* words, int* more, int* counter, Integer count, Integer more_count) {
    imn::clear_words(words, count, more, more_count, counter, here());
}

template <typename T>
__global__ void __launch_bounds__(imn::GROUP) bounds(const T* vertices, const Integer* faces, T* bounds, Integer batch,
                                                     Integer vertex_count, Integer face_count) {
    imn::find_bounds(imn::Meshes<T>{vertices, faces, batch, vertex_count, face_count}, imn::Bounds<T>{bounds}, here());
}

template <typename T>
__global__ void __launch_bounds__(imn::GROUP)
    prepare(const T* vertices, const Integer* faces, T* bounds, T* triangles, T* balls, Integer batch,
            Integer vertex_count, Integer face_count) {
    imn::prepare(imn::Meshes<T>{vertices, faces, batch, vertex_count, face_count}, imn::Bounds<T>{bounds}, triangles,
                 balls, here());
}

template <typename T>
__global__ void __launch_bounds__(imn::GROUP)
    prepare_gradient(const T* vertices, const Integer* faces, T* triangles, int* first, Integer batch,
                     Integer vertex_count, Integer face_count) {
    imn::prepare_gradient(imn::Meshes<T>{vertices, faces, batch, vertex_count, face_count}, triangles, first, here());
}

template <typename T>
__global__ void __launch_bounds__(imn::GROUP)
    cross_faces(const T* vertices, const Integer* faces, T* bounds, int* changes, Integer batch, Integer vertex_count,
                Integer face_count, Integer x, Integer y, Integer z, Integer normalised) {
    imn::cross_face(imn::Meshes<T>{vertices, faces, batch, vertex_count, face_count}, imn::Bounds<T>{bounds}, changes,
                    imn::WindingGrid{Shape{int(x), int(y), int(z)}, normalised != 0}, here());
}

__global__ void __launch_bounds__(imn::GROUP) accumulate(int* changes, Integer count, Integer size) {
    imn::accumulate_column(changes, count, size, here());
}

template <typename T>
__global__ void __launch_bounds__(imn::GROUP)
    list_faces(const T* triangles, const T* balls, T* bounds, int* list, int* listed, Integer capacity,
               Integer face_count, Integer x, Integer y, Integer z) {
    IMN_SHARED_VARIABLE(imn::ListShared<T>, shared);
    imn::list_block(imn::Faces<T>{triangles, balls, face_count}, imn::Bounds<T>{bounds}, Shape{int(x), int(y), int(z)},
                    imn::BlockLists{list, listed, int(capacity)}, here(), &shared);
}

// Groups at once: as many as nothing spills for.
template <typename T>
__global__ void __launch_bounds__(imn::GROUP, sizeof(T) == 4 ? 3 : 1)
    solve(const T* triangles, const T* balls, T* bounds, int* list, int* listed, int* crowd, int* crowded, T* sdf,
          int* face, Integer capacity, Integer face_count, Integer x, Integer y, Integer z) {
    IMN_SHARED_VARIABLE(imn::SolveShared<T>, shared);
    imn::solve_box(imn::Search<T>{imn::Faces<T>{triangles, balls, face_count}, imn::Bounds<T>{bounds},
                                  imn::BlockLists{list, listed, int(capacity)}, imn::Crowd{crowd, crowded},
                                  imn::Output<T>{sdf, face, Shape{int(x), int(y), int(z)}}},
                   here(), &shared);
}

template <typename T>
__global__ void __launch_bounds__(imn::GROUP, sizeof(T) == 4 ? 2 : 1)
    solve_crowded(const T* triangles, const T* balls, T* bounds, int* list, int* listed, int* crowd, int* crowded,
                  T* sdf, int* face, Integer capacity, Integer face_count, Integer x, Integer y, Integer z,
                  Integer groups) {
    IMN_SHARED_VARIABLE(imn::CrowdShared<T>, shared);
    imn::solve_crowded(imn::Search<T>{imn::Faces<T>{triangles, balls, face_count}, imn::Bounds<T>{bounds},
                                      imn::BlockLists{list, listed, int(capacity)}, imn::Crowd{crowd, crowded},
                                      imn::Output<T>{sdf, face, Shape{int(x), int(y), int(z)}}},
                       groups, here(), &shared);
}

template <typename T>
__global__ void __launch_bounds__(imn::GROUP)
    differentiate(const T* grad, const T* triangles, const Integer* faces, const int* first, const T* sdf,
                  const int* face, T* result, Integer batch, Integer vertex_count, Integer face_count, Integer x,
                  Integer y, Integer z) {
    IMN_SHARED_VARIABLE(imn::GradientShared<T>, shared);
    imn::differentiate_half_block(imn::GradientInput<T>{grad, triangles, faces, first, sdf, face, batch, vertex_count,
                                                        face_count, Shape{int(x), int(y), int(z)}},
                                  result, imn::Terms<T>{}, here(), &shared);
}

__global__ void __launch_bounds__(imn::GROUP)
    differentiate_fixed(const float* grad, const float* triangles, const Integer* faces, const int* first,
                        const float* sdf, const int* face, Integer* result, const double* scale, Integer batch,
                        Integer vertex_count, Integer face_count, Integer x, Integer y, Integer z) {
    IMN_SHARED_VARIABLE(imn::GradientShared<Integer>, shared);
    imn::differentiate_half_block(imn::GradientInput<float>{grad, triangles, faces, first, sdf, face, batch,
                                                            vertex_count, face_count, Shape{int(x), int(y), int(z)}},
                                  result, imn::FixedTerms{scale}, here(), &shared);
}

}  // namespace

IMN_EXPORT(clear, clear, imn::GROUP)
IMN_EXPORT(accumulate, accumulate, imn::GROUP)
IMN_EXPORT(bounds_float, bounds<float>, imn::GROUP)
IMN_EXPORT(bounds_double, bounds<double>, imn::GROUP)
IMN_EXPORT(prepare_float, prepare<float>, imn::GROUP)
IMN_EXPORT(prepare_double, prepare<double>, imn::GROUP)
IMN_EXPORT(prepare_gradient_float, prepare_gradient<float>, imn::GROUP)
IMN_EXPORT(prepare_gradient_double, prepare_gradient<double>, imn::GROUP)
IMN_EXPORT(cross_faces_float, cross_faces<float>, imn::GROUP)
IMN_EXPORT(cross_faces_double, cross_faces<double>, imn::GROUP)
IMN_EXPORT(list_faces_float, list_faces<float>, imn::GROUP)
IMN_EXPORT(list_faces_double, list_faces<double>, imn::GROUP)
IMN_EXPORT(solve_float, solve<float>, imn::GROUP)
IMN_EXPORT(solve_double, solve<double>, imn::GROUP)
IMN_EXPORT(solve_crowded_float, solve_crowded<float>, imn::GROUP)
IMN_EXPORT(solve_crowded_double, solve_crowded<double>, imn::GROUP)
IMN_EXPORT(differentiate_float, differentiate<float>, imn::GROUP)
IMN_EXPORT(differentiate_double, differentiate<double>, imn::GROUP)
IMN_EXPORT(differentiate_fixed, differentiate_fixed, imn::GROUP)
