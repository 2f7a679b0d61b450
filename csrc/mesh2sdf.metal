// mesh2sdf and voxelize on Metal; the package inlines the headers before it compiles this file. Scalars come one by
// one, as torch can hand over no struct; here they are packed into what the kernels share.
#include <metal_stdlib>

#include "mesh2sdf_gpu.h"

using imn::Integer;
using imn::Shape;
using imn::Thread;

[[max_total_threads_per_threadgroup(256)]]
kernel void clear(device int* words, device int* more, device int* counter, constant Integer& count,
                  constant Integer& more_count, uint group [[threadgroup_position_in_grid]],
                  uint index [[thread_position_in_threadgroup]]) {
    imn::clear_words(words, count, more, more_count, counter, Thread{Integer(group), int(index)});
}

[[max_total_threads_per_threadgroup(256)]]
kernel void bounds_float(const device float* vertices, const device Integer* faces, device float* bounds,
                         constant Integer& batch, constant Integer& vertex_count, constant Integer& face_count,
                         uint group [[threadgroup_position_in_grid]], uint index [[thread_position_in_threadgroup]]) {
    imn::find_bounds(imn::Meshes<float>{vertices, faces, batch, vertex_count, face_count}, imn::Bounds<float>{bounds},
                     Thread{Integer(group), int(index)});
}

[[max_total_threads_per_threadgroup(256)]]
kernel void prepare_float(const device float* vertices, const device Integer* faces, device float* bounds,
                          device float* triangles, device float* balls, constant Integer& batch,
                          constant Integer& vertex_count, constant Integer& face_count,
                          uint group [[threadgroup_position_in_grid]], uint index [[thread_position_in_threadgroup]]) {
    imn::prepare(imn::Meshes<float>{vertices, faces, batch, vertex_count, face_count}, imn::Bounds<float>{bounds},
                 triangles, balls, Thread{Integer(group), int(index)});
}

[[max_total_threads_per_threadgroup(256)]]
kernel void prepare_gradient_float(const device float* vertices, const device Integer* faces, device float* triangles,
                                   device int* first, constant Integer& batch, constant Integer& vertex_count,
                                   constant Integer& face_count, uint group [[threadgroup_position_in_grid]],
                                   uint index [[thread_position_in_threadgroup]]) {
    imn::prepare_gradient(imn::Meshes<float>{vertices, faces, batch, vertex_count, face_count}, triangles, first,
                          Thread{Integer(group), int(index)});
}

[[max_total_threads_per_threadgroup(256)]]
kernel void cross_faces_float(const device float* vertices, const device Integer* faces, device float* bounds,
                              device int* changes, constant Integer& batch, constant Integer& vertex_count,
                              constant Integer& face_count, constant Integer& x, constant Integer& y,
                              constant Integer& z, constant Integer& normalised,
                              uint group [[threadgroup_position_in_grid]],
                              uint index [[thread_position_in_threadgroup]]) {
    imn::cross_face(imn::Meshes<float>{vertices, faces, batch, vertex_count, face_count}, imn::Bounds<float>{bounds},
                    changes, imn::WindingGrid{Shape{int(x), int(y), int(z)}, normalised != 0},
                    Thread{Integer(group), int(index)});
}

[[max_total_threads_per_threadgroup(256)]]
kernel void accumulate(device int* changes, constant Integer& count, constant Integer& size,
                       uint group [[threadgroup_position_in_grid]], uint index [[thread_position_in_threadgroup]]) {
    imn::accumulate_column(changes, count, size, Thread{Integer(group), int(index)});
}

[[max_total_threads_per_threadgroup(256)]]
kernel void list_faces_float(const device float* triangles, const device float* balls, device float* bounds,
                             device int* list, device int* listed, constant Integer& capacity,
                             constant Integer& face_count, constant Integer& x, constant Integer& y,
                             constant Integer& z, uint group [[threadgroup_position_in_grid]],
                             uint index [[thread_position_in_threadgroup]]) {
    IMN_SHARED_VARIABLE(imn::ListShared<float>, shared);
    imn::list_block(imn::Faces<float>{triangles, balls, face_count}, imn::Bounds<float>{bounds},
                    Shape{int(x), int(y), int(z)}, imn::BlockLists{list, listed, int(capacity)},
                    Thread{Integer(group), int(index)}, &shared);
}

[[max_total_threads_per_threadgroup(256)]]
kernel void solve_float(const device float* triangles, const device float* balls, device float* bounds,
                        device int* list, device int* listed, device int* crowd, device int* crowded, device float* sdf,
                        device int* face, constant Integer& capacity, constant Integer& face_count, constant Integer& x,
                        constant Integer& y, constant Integer& z, uint group [[threadgroup_position_in_grid]],
                        uint index [[thread_position_in_threadgroup]]) {
    IMN_SHARED_VARIABLE(imn::SolveShared<float>, shared);
    imn::solve_box(imn::Search<float>{imn::Faces<float>{triangles, balls, face_count}, imn::Bounds<float>{bounds},
                                      imn::BlockLists{list, listed, int(capacity)}, imn::Crowd{crowd, crowded},
                                      imn::Output<float>{sdf, face, Shape{int(x), int(y), int(z)}}},
                   Thread{Integer(group), int(index)}, &shared);
}

[[max_total_threads_per_threadgroup(256)]]
kernel void solve_crowded_float(const device float* triangles, const device float* balls, device float* bounds,
                                device int* list, device int* listed, device int* crowd, device int* crowded,
                                device float* sdf, device int* face, constant Integer& capacity,
                                constant Integer& face_count, constant Integer& x, constant Integer& y,
                                constant Integer& z, constant Integer& groups,
                                uint group [[threadgroup_position_in_grid]],
                                uint index [[thread_position_in_threadgroup]]) {
    IMN_SHARED_VARIABLE(imn::CrowdShared<float>, shared);
    imn::solve_crowded(imn::Search<float>{imn::Faces<float>{triangles, balls, face_count}, imn::Bounds<float>{bounds},
                                          imn::BlockLists{list, listed, int(capacity)}, imn::Crowd{crowd, crowded},
                                          imn::Output<float>{sdf, face, Shape{int(x), int(y), int(z)}}},
                       groups, Thread{Integer(group), int(index)}, &shared);
}

[[max_total_threads_per_threadgroup(256)]]
kernel void differentiate_float(const device float* grad, const device float* triangles, const device Integer* faces,
                                const device int* first, const device float* sdf, const device int* face,
                                device float* result, constant Integer& batch, constant Integer& vertex_count,
                                constant Integer& face_count, constant Integer& x, constant Integer& y,
                                constant Integer& z, uint group [[threadgroup_position_in_grid]],
                                uint index [[thread_position_in_threadgroup]]) {
    IMN_SHARED_VARIABLE(imn::GradientShared<float>, shared);
    imn::differentiate_half_block(imn::GradientInput<float>{grad, triangles, faces, first, sdf, face, batch,
                                                            vertex_count, face_count, Shape{int(x), int(y), int(z)}},
                                  result, imn::Terms<float>{}, Thread{Integer(group), int(index)}, &shared);
}
