//! End-to-end tests of the area `backup`.
