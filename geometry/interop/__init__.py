"""Other libraries' cameras, poses, rotations, lenses and points, from ours and to ours: one module a library.

    from geometry.interop import colmap, kornia, open3d, opencv, pytorch3d, scipy

`to_…` goes from this project to the library, `from_…` comes back, under the same noun in every module:

    camera      pose and intrinsics (COLMAP: the intrinsics alone), always in the order world_to_camera, K, distortion,
                image_size as far as the library has them, so that to_camera(*from_camera(…)) is the identity
    pose        the rigid motion alone
    pixels      points2d, where the library's pixel grid is another
    distortion, rotation, points, transform, quat_xyzw, rays      what one library alone has

`image_size` is (width, height), as `Reconstruction.image_sizes` has it. Where the other side holds tensors (PyTorch3D,
kornia) a conversion is batched, differentiable, and keeps dtype and device; where it holds objects of the host (OpenCV,
COLMAP, Open3D, SciPy) values are detached and copied to float64 there, and come back as float64 tensors on the CPU.
A module imports its library when a function needs it, and importing the module brings torch alone.

Poses are checked: what is no rigid motion to 1e-3 (a reflection, a scale, a NaN) raises ValueError in either direction,
and so does what is no tensor where one is wanted.
"""
