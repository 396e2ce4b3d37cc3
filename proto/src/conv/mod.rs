//! The model's types from and to their wire form.
