//! Multi-criteria decision analysis.
