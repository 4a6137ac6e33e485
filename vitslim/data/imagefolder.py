def load_folder_sets(*a): raise NotImplementedError
