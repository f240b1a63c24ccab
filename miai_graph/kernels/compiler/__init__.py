"""Native code: written in LLVM's language, compiled, kept, and loaded."""
