# leap YEAR: true in a leap year of the Gregorian calendar.
leap() {
    [ $(($1 % 4)) -eq 0 ]
}
