"""What object_pose, object_pose_study and predict share."""
