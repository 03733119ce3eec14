//! A hint to the processor: these bytes are needed soon.
//!
//! In: a value that is looked at later. Out: nothing; it is on its way to the nearest cache meanwhile.
//! Called by: tables that are larger than the caches.

#![expect(unsafe_code, reason = "no safe function of the standard library gives this hint")]

/// Bytes of a cache line, on every processor cepa is built for.
const LINE: usize = 64;

/// Begins to fetch a value's own bytes, not those it points to. Changes nothing but time.
#[inline]
pub fn prefetch<T>(value: &T) {
    let first = std::ptr::from_ref(value).cast::<u8>();
    for at in (0..size_of::<T>()).step_by(LINE) {
        fetch_line(first.wrapping_add(at));
    }
    fetch_line(first.wrapping_add(size_of::<T>().saturating_sub(1)));
}

/// As [`prefetch`], of the line where a value starts.
#[inline]
pub fn prefetch_start<T>(value: &T) {
    fetch_line(std::ptr::from_ref(value).cast());
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn fetch_line(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    // SAFETY: the instruction reads nothing into the program and does not fault, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

#[cfg(target_arch = "aarch64")]
#[inline]
fn fetch_line(address: *const u8) {
    // SAFETY: the instruction reads nothing into the program and does not fault, whatever the address.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{}]",
            in(reg) address,
            options(nostack, readonly, preserves_flags)
        );
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline]
fn fetch_line(_: *const u8) {}
