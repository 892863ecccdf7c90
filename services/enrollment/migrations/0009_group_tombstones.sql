-- Of deleted groups the latest stay.
GRANT DELETE ON enrollment.device_group TO evergreen_enrollment;
