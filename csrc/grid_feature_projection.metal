// Splat, gather and the gradient by the positions on Metal; the package inlines the headers before it compiles this.
#include <metal_stdlib>

#include "grid_feature_projection_gpu.h"

using imn::Bfloat16;
using imn::Integer;
using imn::Layout;
using imn::Thread;

[[max_total_threads_per_threadgroup(256)]]
kernel void splat_float(const device float* vertices, const device float* features, device float* volume,
                        constant Integer& batch, constant Integer& count, constant Integer& channels,
                        constant Integer& x, constant Integer& y, constant Integer& z, constant Integer& step_b,
                        constant Integer& step_channel, constant Integer& step_x, constant Integer& step_y,
                        constant Integer& step_z, uint group [[threadgroup_position_in_grid]],
                        uint index [[thread_position_in_threadgroup]]) {
    imn::splat_channel(imn::Vertices<float>{vertices, batch, count}, features, volume,
                       Layout{channels, x, y, z, step_b, step_channel, step_x, step_y, step_z}, imn::Terms<float>{},
                       Thread{Integer(group), int(index)});
}

[[max_total_threads_per_threadgroup(256)]]
kernel void gather_float(const device float* volume, const device float* vertices, device float* result,
                         constant Integer& batch, constant Integer& count, constant Integer& row,
                         constant Integer& first, constant Integer& channels, constant Integer& x, constant Integer& y,
                         constant Integer& z, constant Integer& step_b, constant Integer& step_channel,
                         constant Integer& step_x, constant Integer& step_y, constant Integer& step_z,
                         uint group [[threadgroup_position_in_grid]], uint index [[thread_position_in_threadgroup]]) {
    imn::gather_channel(volume, imn::Vertices<float>{vertices, batch, count}, result, imn::Row{row, first},
                        Layout{channels, x, y, z, step_b, step_channel, step_x, step_y, step_z},
                        Thread{Integer(group), int(index)});
}

[[max_total_threads_per_threadgroup(256)]]
kernel void position_gradient_float(const device float* volume, const device float* vertices,
                                    const device float* features, device float* result, constant Integer& batch,
                                    constant Integer& count, constant Integer& row, constant Integer& first,
                                    constant Integer& channels, constant Integer& x, constant Integer& y,
                                    constant Integer& z, constant Integer& step_b, constant Integer& step_channel,
                                    constant Integer& step_x, constant Integer& step_y, constant Integer& step_z,
                                    uint group [[threadgroup_position_in_grid]],
                                    uint index [[thread_position_in_threadgroup]]) {
    imn::differentiate_vertex(
        volume, imn::Vertices<float>{vertices, batch, count}, features, result, imn::Row{row, first},
        Layout{channels, x, y, z, step_b, step_channel, step_x, step_y, step_z}, Thread{Integer(group), int(index)});
}

[[max_total_threads_per_threadgroup(256)]]
kernel void gather_bfloat16(const device Bfloat16* volume, const device float* vertices, device float* result,
                            constant Integer& batch, constant Integer& count, constant Integer& row,
                            constant Integer& first, constant Integer& channels, constant Integer& x,
                            constant Integer& y, constant Integer& z, constant Integer& step_b,
                            constant Integer& step_channel, constant Integer& step_x, constant Integer& step_y,
                            constant Integer& step_z, uint group [[threadgroup_position_in_grid]],
                            uint index [[thread_position_in_threadgroup]]) {
    imn::gather_channel(volume, imn::Vertices<float>{vertices, batch, count}, result, imn::Row{row, first},
                        Layout{channels, x, y, z, step_b, step_channel, step_x, step_y, step_z},
                        Thread{Integer(group), int(index)});
}

[[max_total_threads_per_threadgroup(256)]]
kernel void position_gradient_bfloat16(const device Bfloat16* volume, const device float* vertices,
                                       const device float* features, device float* result, constant Integer& batch,
                                       constant Integer& count, constant Integer& row, constant Integer& first,
                                       constant Integer& channels, constant Integer& x, constant Integer& y,
                                       constant Integer& z, constant Integer& step_b, constant Integer& step_channel,
                                       constant Integer& step_x, constant Integer& step_y, constant Integer& step_z,
                                       uint group [[threadgroup_position_in_grid]],
                                       uint index [[thread_position_in_threadgroup]]) {
    imn::differentiate_vertex(
        volume, imn::Vertices<float>{vertices, batch, count}, features, result, imn::Row{row, first},
        Layout{channels, x, y, z, step_b, step_channel, step_x, step_y, step_z}, Thread{Integer(group), int(index)});
}
