//! What attackers do.
