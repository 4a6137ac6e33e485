"""Problems between a recipe and its model, images, teachers and layout, found before anything runs."""
