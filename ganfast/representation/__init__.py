"""What a critic has learned of images: how well its features tell classes apart (Radford et al. 2016, section 5)."""
