"""From the bytes of a file to a sample: images, sounds, arrays (`kinds.DECODERS`)."""
