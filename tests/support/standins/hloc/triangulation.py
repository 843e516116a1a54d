def run_triangulation(
    model_path, database_path, image_dir, reference_model, verbose=False, options=None
):
    return database_path
