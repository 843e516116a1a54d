def run_reconstruction(sfm_dir, database_path, image_dir, verbose=False, options=None):
    return database_path
