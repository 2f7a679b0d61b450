"""ImplicitMeshNet: anatomical shape estimation from volumetric images, as closed surface meshes."""
