//! Making plans happen: the tables behind one trait, and the interpreter that makes no choices.

pub mod maps;
pub mod memory;
