//! The chunker polynomial of a config: a random irreducible polynomial of degree 53 over GF(2).
//!
//! We cut chunks in another way, but other clients that write into the same repository need a valid one.

use std::fmt;

use rand::Rng;

/// The degree that the format demands. It is a prime, which makes the test below short.
const DEGREE: u32 = 53;

/// An irreducible polynomial of degree 53; bit n is the coefficient of x^n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polynomial(u64);

impl Polynomial {
    /// Draws one at random. About 30 candidates are tested on average, which takes microseconds.
    pub fn random() -> Self {
        let mut random = rand::rng();
        loop {
            let candidate = (random.next_u64() & ((1 << DEGREE) - 1)) | (1 << DEGREE) | 1;
            if is_irreducible(candidate) {
                return Self(candidate);
            }
        }
    }

    /// Reads the hexadecimal digits of a config; `None` when they are not an irreducible polynomial of degree 53.
    pub fn parse(digits: &str) -> Option<Self> {
        let value = u64::from_str_radix(digits, 16).ok()?;
        is_irreducible(value).then_some(Self(value))
    }

    /// The coefficients.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Polynomial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Rabin's test: for a prime degree n, f is irreducible exactly when x^(2^n) = x modulo f and f has no root in GF(2).
fn is_irreducible(f: u64) -> bool {
    if f.checked_ilog2() != Some(DEGREE) || f & 1 == 0 || f.count_ones().is_multiple_of(2) {
        return false;
    }
    let mut power = 0b10;
    for _ in 0..DEGREE {
        power = multiply(power, power, f);
    }
    power == 0b10
}

fn multiply(mut a: u64, mut b: u64, modulus: u64) -> u64 {
    let mut product = 0;
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        b >>= 1;
        a <<= 1;
        if a >> DEGREE & 1 == 1 {
            a ^= modulus;
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_of_real_repositories_are_accepted() {
        for digits in ["25b468838dcb75", "23e77ac6a3e35f", "3da3358b4dc173"] {
            assert_eq!(Polynomial::parse(digits).expect(digits).to_string(), digits);
        }
    }

    #[test]
    fn others_are_refused() {
        for digits in
            ["", "0", "1", "zz", "25b468838dcb74", "25b468838dcb77", "5b468838dcb75", "ffffffffffffffff"]
        {
            assert_eq!(Polynomial::parse(digits), None, "{digits}");
        }
    }

    #[test]
    fn a_product_of_two_polynomials_is_refused() {
        // x^26 + x + 1 times x^27 + x^5 + x^2 + x + 1: right degree, no root, yet reducible.
        let (a, b) = ((1u64 << 26) | 0b11, (1u64 << 27) | 0b10_0111);
        let product = (0..27).filter(|bit| a >> bit & 1 == 1).fold(0, |sum, bit| sum ^ (b << bit));
        assert_eq!(product.ilog2(), DEGREE);
        assert!(!is_irreducible(product));
    }

    #[test]
    fn random_ones_differ() {
        assert_ne!(Polynomial::random(), Polynomial::random());
    }
}
