//! The one macro that makes a record of this crate fit for a map: `repr(C)`, its size and
//! alignment asserted, and, in user space, the marker that aya asks for.

/// Declares records that live in maps: `record! { /// docs  pub struct Name: SIZE, ALIGN { … } }`.
///
/// Size equal to the sum of the fields is what proves the absence of hidden padding, so the
/// number written in the source is compared with both.
macro_rules! record {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal, $align:literal {
            $( $(#[$field_meta:meta])* pub $field:ident: $ty:ty, )*
        }
    )*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $ty, )*
        }

        const _: () = {
            assert!(core::mem::size_of::<$name>() == $size);
            assert!(core::mem::align_of::<$name>() == $align);
            assert!(0 $( + core::mem::size_of::<$ty>() )* == $size, "hidden padding");
        };

        #[cfg(feature = "user")]
        // SAFETY: the record is `repr(C)`, made of integers and byte arrays only, and the
        // assertion above proves that it has no padding: any bytes are a valid value.
        unsafe impl aya::Pod for $name {}
    )*};
}
pub(crate) use record;
