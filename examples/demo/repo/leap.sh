# leap YEAR: succeeds if YEAR is a leap year of the Gregorian calendar.
leap() {
    [ $(($1 % 4)) -eq 0 ]
}
