//! Tests over sockets and processes: what a client and an operator see.

mod master;
