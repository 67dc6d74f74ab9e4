! NAME: an example by hrt.
!   cc FLAGS -c STEM.c && gfortran STEM.f90 STEM_example.f90 STEM.o -o example && ./example
program NAME_example
  use NAME_module
  use, intrinsic :: iso_c_binding, only: c_int8_t, c_size_t
  implicit none
  real(NAME_real) :: F_ARRAYS ! ROWS rows
  integer(c_int8_t), allocatable, target :: memory(:) ! once; every thread has one of its own
  integer :: i
  allocate(memory(NAME_workspace() + 63))
F_INPUTS
  if (CALL(ARGUMENTS, ROWS_c_size_t, NAME_aligned(memory)) /= 0) error stop 1
F_OUTPUTS
end program NAME_example
