// The peer on CUDA: one thread a voxel, every face in turn, with the op's own arithmetic. No sign.
#include "launch.h"
#include "mesh2sdf_gpu.h"

namespace {

using imn::Integer;
using imn::Shape;
using imn::Vec3;

__global__ void __launch_bounds__(imn::GROUP)
    brute_force(const float* triangles, float* distance, Integer face_count, Integer x, Integer y, Integer z) {
    Integer voxel = Integer(blockIdx.x) * imn::GROUP + threadIdx.x;
    if (voxel >= x * y * z) return;
    Vec3<float> point = {imn::coordinate<float>(2 * int(voxel / (y * z)), int(x)),
                         imn::coordinate<float>(2 * int(voxel / z % y), int(y)),
                         imn::coordinate<float>(2 * int(voxel % z), int(z))};
    float best = 3e38f;
    for (Integer face = 0; face < face_count; face++) {
        imn::Triangle<float> t = imn::load_triangle(triangles, face);
        best = imn::minimum(best, imn::squared_distance(t, imn::to_frame(t, point)));
    }
    distance[voxel] = imn::square_root(best);
}

}  // namespace

IMN_EXPORT(brute_force, brute_force, imn::GROUP)
